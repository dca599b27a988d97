"""A stream that no model was trained on, with questions about it and their true answers.

Its seed and the text of its signs belong to the test split, which training never draws from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from builtin.world.frames import Frame, Painter, Style
from builtin.world.packs import Textures, World, load_world
from builtin.world.render import plan_pictures, render
from builtin.world.splits import TEST, rng_of
from builtin.world.streams import StreamSize, frame_times, paint_frames, questions_about
from builtin.world.tasks import Turn
from infinitevl.processing import frames as processing

NUM_SIGNS = 6
# After which share of the stream to ask about what: mostly what the built-in model can answer on validation
# streams, and at the end one thing that it mostly cannot, a sign by its colour after hundreds of frames. The
# demo shows, it does not score.
MOMENTS = (
    (0.04, ("first sign", "now", "keyed sign")),
    (0.1, ("signs", "first thing", "now")),
    (0.3, ("now", "first sign")),
    (0.6, ("last sign", "first sign")),
    (1.0, ("now", "last sign", "first thing", "first sign", "keyed sign")),
)
_TRIES = 20
_AT_ONCE = 16  # pictures drawn together


@dataclass(frozen=True)
class KnownQuestion:
    """A question with its true answer, and the second of the stream at which it is asked."""

    at: float
    turn: Turn


@dataclass(frozen=True)
class Exam:
    """A stream and what is known about it."""

    source: processing.Source
    questions: list[KnownQuestion]


class ComposedStream(processing.Source):
    """Frames of the small world, drawn when they are needed."""

    def __init__(self, world: World, textures: Textures, frames: list[Frame], times: list[float], seed: int):
        self.frames, self.times, self.num_frames = frames, times, len(frames)
        self._world, self._textures, self._seed = world, textures, seed

    def __iter__(self) -> Iterator[processing.Frame]:
        noise = torch.Generator().manual_seed(self._seed)
        for start in range(0, len(self.frames), _AT_ONCE):
            pictures = [frame.picture for frame in self.frames[start : start + _AT_ONCE]]
            pixels = render(plan_pictures(pictures, self._world), self._textures, noise)
            for image, time in zip(pixels.permute(0, 2, 3, 1), self.times[start:], strict=False):
                yield processing.Frame(image.numpy(), time)

    def close(self) -> None:
        """Nothing is held open."""


def set_exam(num_frames: int, seed: int = 0) -> Exam:
    """A stream of `num_frames` at two a second, with questions about its beginning, its end and between.

    Raises:
        InputError: the small pack of pictures is not in the package.
    """
    world, textures = load_world()
    rng = rng_of(TEST, seed)
    painter = Painter(world, Style.of(world, TEST), rng)
    size = StreamSize(num_frames, num_signs=min(NUM_SIGNS, num_frames // 3))
    frames = _with_signs_at_both_ends(paint_frames(painter, size))
    times = frame_times(rng, size)
    questions = []
    for share, tasks in MOMENTS:
        seen = max(2, round(share * num_frames))
        turns = _turns(tasks, questions_about(painter, frames[:seen]))
        questions += [KnownQuestion(times[seen - 1], turn) for turn in turns]
    return Exam(ComposedStream(world, textures, frames, times, seed), questions)


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
