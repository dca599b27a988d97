"""Recall against the length of a stream, with the memory that it takes, for several models.

    python -m builtin.recall --models "stage 2=runs/builtin/sft/model" --teacher runs/builtin/teacher/model \\
        --out runs/builtin/recall

Streams of 2 frames a second with 2 to 8 signs at random places, as in `builtin.evaluate`; all other frames
come from a pool of pictures without signs, so that long streams show each of them more than once. Every
stream is asked, on a copy of its state, for its first sign, for one sign by its colour, and for its last
sign. Models must share their vision encoder, which reads every picture once. Writes recall.json and
recall.png.
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from builtin.command import command
from builtin.evaluate import LONGEST_ANSWER, Examiner, Scene, fold, open_model, scenes
from builtin.feed.rows import FRAME_TOKENS, GRID, TOKENS_PER_SECOND
from builtin.recall_figure import draw
from builtin.vocabulary import open_tokenizer
from builtin.world import splits
from builtin.world.frames import Frame, Painter
from builtin.world.render import FRAME_SIZE, PATCH, plan_pictures, render
from builtin.world.shapes import SIGN_COLOURS
from builtin.world.streams import paint_pool, questions_about
from builtin.world.tasks import Turn
from infinitevl.config import FULL, SLIDING
from infinitevl.model.fused import fuse_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.vision import vision_plan
from infinitevl.processing.pictures.patches import frame_patches
from infinitevl.state import DeltaState, StreamState

TASKS = ("first sign", "keyed sign", "last sign")
LENGTHS = (8, 64, 256, 1024, 4096, 10_000)
FRAMES_AT_ONCE = 4096  # of all streams together
FRAMES_A_SECOND = 2
_POOL_SEED, _STREAM_SEED = 11, 12
_MOST_KEPT = 240_000  # frames of which a model keeps every key and value


class TooLong(Exception):
    """Reading took more seconds than it was given."""


@dataclass(frozen=True)
class Streams:
    """N streams of L frames.

    frames: int64 [N, L], rows of a table of features. turns: by task, one question a stream.
    """

    frames: Tensor
    turns: dict[str, list[Turn]]


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    lengths: frames. samples: streams of each length. pool: pictures without signs. seconds: for reading
    streams of one length.
    """

    lengths: Sequence[int] = LENGTHS
    samples: int = 128
    pool: int = 4096
    seconds: float = 40.0


class Reader:
    """Reads many streams at once, a few frames of each at a time, and asks for their signs."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, tokenizer: Tokenizer):
        self.model, self.examiner = model, Examiner(model, tokenizer)
        self.writer, self.device = self.examiner.writer, model.device

    @torch.inference_mode()
    def read(
        self, table: Tensor, frames: Tensor, seconds: float = 1e9
    ) -> tuple[StreamState, list[tuple[int, list[float]]]]:
        """Read all frames [N, L] of streams whose features stand in `table` [M, 16, C].

        Returns:
            The state of N streams; after some frames, the mean norm of each Gated DeltaNet's recurrent state.

        Raises:
            TooLong: it took more than `seconds`.
        """
        count, length = frames.shape
        room = length * FRAME_TOKENS + 1 + 64 + LONGEST_ANSWER
        decoder, state = self.model.model.language_model, self.model.allocate_state(count, max_length=room)
        opening = torch.full((count, 1), self.writer.vision_start, device=self.device)
        decoder(decoder.embed_tokens(opening), opening.new_zeros(3, count, 1), state)
        at_once, start, norms = max(1, FRAMES_AT_ONCE // count), time.perf_counter(), []
        for first in range(0, length, at_once):
            part = frames[:, first : first + at_once]
            places = _positions(first, part.shape[1], self.device).expand(-1, count, -1)
            decoder(table[part].flatten(1, 2), places, state)
            norms.append((first + part.shape[1], recurrent_norms(state)))
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # so that the clock tells the truth
            if time.perf_counter() - start > seconds:
                raise TooLong
        return state, norms

    @torch.inference_mode()
    def ask(self, state: StreamState, turns: Sequence[Turn]) -> list[str]:
        """The answers of N streams to one question each; their state stays as it was."""
        rows = [self._question(turn.question) for turn in turns]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        places = state.next_position[:, None] + torch.arange(longest, device=self.device)
        embeds = self.model.model.language_model.embed_tokens(ids)
        return self.examiner.reply(embeds, places.expand(3, -1, -1), lengths, state.fork())

    def _question(self, question: str) -> list[int]:
        writer = self.writer
        asked = [*writer.user, *writer.encode(question), writer.end, *writer.new_line, *writer.assistant]
        return [writer.vision_end, *writer.system, *asked]


def recurrent_norms(state: StreamState) -> list[float]:
    """Of each Gated DeltaNet: the Frobenius norm of a stream's recurrent state, mean over streams."""
    layers = [layer.recurrent_state for layer in state.layers if isinstance(layer, DeltaState)]
    if not layers:
        return []
    norms = torch.stack([memory.flatten(1).norm(dim=1).mean() for memory in layers])
    return [round(norm, 4) for norm in norms.tolist()]


def _positions(first: int, count: int, device: torch.device) -> Tensor:
    """Of frames `first`, `first` + 1, ... of a stream that opens at 0: int64 [3, 1, count * 16]."""
    frame = torch.arange(first, first + count, device=device)
    token = torch.arange(FRAME_TOKENS, device=device)
    time_axis = (1 + frame * TOKENS_PER_SECOND // FRAMES_A_SECOND).repeat_interleave(FRAME_TOKENS)
    places = [time_axis, (1 + token // GRID).repeat(count), (1 + token % GRID).repeat(count)]
    return torch.stack(places)[:, None]


# ------ the streams


@torch.inference_mode()
def features_of(visual: torch.nn.Module, scene: Scene, frames: Sequence[Frame]) -> Tensor:
    """What the vision encoder makes of frames: [M, 16, C]."""
    noise, side = torch.Generator(scene.textures.device).manual_seed(0), FRAME_SIZE // PATCH
    parts = []
    for start in range(0, len(frames), 2048):
        pictures = [frame.picture for frame in frames[start : start + 2048]]
        drawn = render(plan_pictures(pictures, scene.world), scene.textures, noise)
        plan = vision_plan(((1, side, side),) * len(drawn), visual.sizes, drawn.device)
        parts.append(visual.encode(frame_patches(drawn), plan).unflatten(0, (-1, FRAME_TOKENS)))
    return torch.cat(parts)


def pool_of(scene: Scene, split: str, count: int) -> list[Frame]:
    """Pictures without signs."""
    return paint_pool(scene.world, scene.style, splits.rng_of(split, _POOL_SEED), count)


def plan_streams(
    scene: Scene, split: str, length: int, count: int, pool_size: int
) -> tuple[Streams, list[Frame]]:
    """Streams whose frames are numbers of the pool, or pool_size + numbers of the signs, which come too."""
    rng = splits.rng_of(split, _STREAM_SEED, length)
    painter = Painter(scene.world, scene.style, rng)
    signs: list[Frame] = []
    turns: dict[str, list[Turn]] = {task: [] for task in TASKS}
    rows = []
    for _ in range(count):
        frames = torch.tensor(rng.choices(range(pool_size), k=length))
        shown = _signs(painter, rng, length)
        for place, sign in shown:
            frames[place] = pool_size + len(signs)
            signs.append(sign)
        makers = questions_about(painter, [sign for _, sign in shown])
        for task in TASKS:
            turns[task].append(makers[task]())
        rows.append(frames)
    return Streams(torch.stack(rows), turns), signs


def _signs(painter: Painter, rng: Random, length: int) -> list[tuple[int, Frame]]:
    count = rng.randint(min(2, length), min(8, length))
    places = sorted(rng.sample(range(length), count))
    colours = rng.sample(SIGN_COLOURS, count)
    return [(place, painter.sign(colour=colour)) for place, colour in zip(places, colours, strict=True)]


# ------ the measurement


def measure(reader: Reader, table: Tensor, streams: Streams, seconds: float) -> dict:
    """Scores of one model at one length, the bytes of one stream's state, and how long reading took."""
    start = time.perf_counter()
    try:
        state, norms = reader.read(table, streams.frames.to(reader.device), seconds)
    except TooLong:
        return {"not_run": f"reading takes more than {seconds:.0f} s"}
    except RuntimeError as error:  # out of memory, for one
        return {"not_run": str(error).splitlines()[0]}
    passed = time.perf_counter() - start
    scores, alike = {}, {}
    for task in TASKS:
        answers = list(zip(streams.turns[task], reader.ask(state, streams.turns[task]), strict=True))
        scores[task] = sum(turn.accepts(text) for turn, text in answers) / len(answers)
        alike[task] = sum(fold(text) == fold(turn.answer) for turn, text in answers) / len(answers)
    count, length = streams.frames.shape
    facts = {"streams": count, "state_bytes": state.num_bytes // count, "seconds": round(passed, 2)}
    facts["frames_per_second"] = round(count * length / max(passed, 1e-9))
    return {"scores": scores, "scores_alike": alike, **facts, "norms": thinned(norms)}


def thinned(norms: list[tuple[int, list[float]]], most: int = 40) -> list[tuple[int, list[float]]]:
    """At most so many of the moments, the first and the last among them; none without memories."""
    if not norms or not norms[-1][1]:
        return []
    step = max(1, -(-len(norms) // most))
    return [*norms[:-1:step], norms[-1]]


def run(
    models: dict[str, InfiniteVLForConditionalGeneration], data: Path, split: str, extent: Extent
) -> dict:
    """Every model at every length, as JSON values."""
    first = next(iter(models.values()))
    scene, _ = scenes(data, split, first.device)
    tokenizer = open_tokenizer(data / "tokenizer.json")
    for model in models.values():
        if model.device.type == "cuda":
            fuse_(model)
    pooled = features_of(first.model.visual, scene, pool_of(scene, split, extent.pool))
    results: list[dict] = []
    for length in extent.lengths:
        streams, signs = plan_streams(scene, split, length, extent.samples, extent.pool)
        table = torch.cat([pooled, features_of(first.model.visual, scene, signs)])
        for name, model in models.items():
            found = measure(Reader(model, tokenizer), table, fewer(streams, model, length), extent.seconds)
            results.append({"model": name, "frames": length, **found})
            shown = {key: value for key, value in results[-1].items() if key != "norms"}
            print(json.dumps(shown), flush=True)
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    facts = {"split": split, "device": str(first.device), "hardware": hardware, "pool": extent.pool}
    return {**facts, "results": results}


def fewer(streams: Streams, model: InfiniteVLForConditionalGeneration, length: int) -> Streams:
    """Of long streams as many as have room where a model keeps every key and value."""
    if FULL not in model.config.text_config.layer_types or length <= 1024:
        return streams
    count = max(1, min(len(streams.frames), _MOST_KEPT // length))
    return Streams(streams.frames[:count], {task: turns[:count] for task, turns in streams.turns.items()})


def window_alone(folder: Path, window: int) -> InfiniteVLForConditionalGeneration:
    """The teacher with a window in every layer, not taught any further."""
    full = open_model(folder)
    config = copy.deepcopy(full.config)
    text = config.text_config
    text.layer_types = [SLIDING] * text.num_hidden_layers
    text.sliding_window = window
    model = InfiniteVLForConditionalGeneration.from_pretrained(folder, config=config, dtype=full.dtype)
    return model.to(full.device).eval()


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Recall against the length of a stream.")
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--teacher", type=Path, help="add it, whole and with a window in every layer")
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--split", choices=(splits.VALIDATION, splits.TEST), default=splits.VALIDATION)
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=LENGTHS)
    parser.add_argument("--samples", type=int, default=128, help="streams of each length")
    parser.add_argument("--seconds", type=float, default=40.0, help="for reading streams of one length")
    parser.add_argument("--out", type=Path, required=True, help="folder for recall.json and recall.png")
    arguments = parser.parse_args()
    models = {}
    for given in arguments.models:
        name, _, folder = given.partition("=")
        models[name] = open_model(Path(folder))
    if arguments.teacher:
        models |= with_teacher(arguments.teacher)
    extent = Extent(arguments.lengths, arguments.samples, seconds=arguments.seconds)
    save(run(models, arguments.data, arguments.split, extent), arguments.out)


def with_teacher(folder: Path, window: int = 64) -> dict[str, InfiniteVLForConditionalGeneration]:
    """The teacher as it is, and with a window in every layer."""
    return {"teacher": open_model(folder), "window only": window_alone(folder, window)}


def save(found: dict, folder: Path) -> None:
    """recall.json and recall.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recall.json").write_text(json.dumps(found, indent=1))
    draw(found, folder / "recall.png")


if __name__ == "__main__":
    main()
