"""Draw the stream of `infinitevl demo`, with questions about it and their true answers, into the package.

    python -m builtin.demo_stream

Its seed and the text of its signs belong to the test split, which training never draws from. Of the frames
that are drawn the first ones are kept: many carry noise, which does not compress, and 240 take 3 MB.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from builtin.command import command
from builtin.world.frames import Frame, Painter, Style
from builtin.world.packs import Textures, World, load_world
from builtin.world.render import plan_pictures, render
from builtin.world.splits import TEST, rng_of
from builtin.world.streams import StreamSize, frame_times, paint_frames, questions_about
from builtin.world.tasks import Turn
from infinitevl.evaluation.demo import stored_folder

NUM_DRAWN, NUM_KEPT, NUM_SIGNS = 300, 240, 6
SEED = 0
# After how many frames to ask about what: mostly what the built-in model can answer on validation streams,
# and at the end one thing that it mostly cannot, a sign by its colour after hundreds of frames. The demo
# shows, it does not score.
MOMENTS = (
    (12, ("first sign", "now", "keyed sign")),
    (30, ("signs", "first thing", "now")),
    (90, ("now", "first sign")),
    (180, ("last sign", "first sign")),
    (NUM_KEPT, ("now", "last sign", "first thing", "first sign", "keyed sign")),
)
_TRIES = 20
_AT_ONCE = 16  # pictures drawn together


@command
def main() -> None:
    """Write frames.webp and questions.json."""
    folder = stored_folder()
    folder.mkdir(exist_ok=True)
    world, textures = load_world()
    frames, facts = compose(world)
    write_frames(draw(world, textures, frames[:NUM_KEPT]), folder / "frames.webp")
    (folder / "questions.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n")
    print(f"{NUM_KEPT} frames and {len(facts['questions'])} questions are in {folder}.")


def compose(world: World) -> tuple[list[Frame], dict[str, list]]:
    """All frames, not yet drawn; the times of those that are kept, and the questions with their answers."""
    rng = rng_of(TEST, SEED)
    painter = Painter(world, Style.of(world, TEST), rng)
    size = StreamSize(NUM_DRAWN, num_signs=NUM_SIGNS)
    frames = _with_signs_at_both_ends(paint_frames(painter, size))
    times = frame_times(rng, size)
    questions = [
        {"after": seen, "question": turn.question, "answer": turn.answer, "also": list(turn.also)}
        for seen, tasks in MOMENTS
        for turn in _turns(tasks, questions_about(painter, frames[:seen]))
    ]
    return frames, {"times": times[:NUM_KEPT], "questions": questions}


def draw(world: World, textures: Textures, frames: list[Frame]) -> list[Image.Image]:
    """The pictures of frames."""
    noise = torch.Generator().manual_seed(SEED)
    drawn: list[Image.Image] = []
    for start in range(0, len(frames), _AT_ONCE):
        pictures = [frame.picture for frame in frames[start : start + _AT_ONCE]]
        pixels = render(plan_pictures(pictures, world), textures, noise)
        drawn += [Image.fromarray(each.numpy()) for each in pixels.permute(0, 2, 3, 1)]
    return drawn


def write_frames(pictures: list[Image.Image], path: Path) -> None:
    """One animated WebP file, without loss."""
    first, *others = pictures
    settings = {"lossless": True, "exact": True, "quality": 50, "method": 4, "duration": 500}
    first.save(path, "WEBP", save_all=True, append_images=others, **settings)


def _with_signs_at_both_ends(frames: list[Frame]) -> list[Frame]:
    """The second frame is a sign, and the third from the end is one."""
    signs = [index for index, frame in enumerate(frames) if frame.sort == "sign"]
    frames.insert(len(frames) - 3, frames.pop(signs[-1]))
    frames.insert(1, frames.pop(signs[0]))
    return frames


def _turns(tasks: tuple[str, ...], makers: dict[str, Callable[[], Turn]]) -> list[Turn]:
    """One question for each task that the frames so far allow, no question twice."""
    turns: list[Turn] = []
    for task in tasks:
        tries = (makers[task]() for _ in range(_TRIES)) if task in makers else iter(())
        new = next((turn for turn in tries if turn.question not in {t.question for t in turns}), None)
        turns += [new] if new else []
    return turns


if __name__ == "__main__":
    main()
