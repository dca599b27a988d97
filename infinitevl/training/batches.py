"""From samples of the small world to batches of equal shape: token ids, positions, answers to learn,
picture plans.

Everything here is cheap and free of pixels; it runs in worker processes. Rows are padded at their end,
where a causal model cannot see it, so batches need no mask.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

from infinitevl.processing.prompt import DEFAULT_SYSTEM, END, IMAGE_PAD, START, VISION_END, VISION_START
from infinitevl.scenes.frames import Style
from infinitevl.scenes.render import Picture, PicturePlan, plan_pictures
from infinitevl.scenes.splits import rng_of
from infinitevl.scenes.streams import StreamSize, stream_sample
from infinitevl.scenes.tasks import CHAT, STREAM, TEXT, Sample, pair_sample, picture_sample, text_sample
from infinitevl.scenes.world import World

GRID = 4  # merged tokens a side of a frame of 112 pixels
FRAME_TOKENS = GRID * GRID
TOKENS_PER_SECOND = 2
EMPTY = Picture(((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))


@dataclass
class Batch:
    """B rows of T tokens.

    ids: int64 [B, T]. positions: int64 [3, B, T].
    places: int64 [M], flat numbers of the tokens that take a picture feature; features: int64 [M], which one
    (frame number x 16 + token of the frame).
    asked: int64 [K], flat numbers of the tokens after which `answers` int64 [K] come.
    plan: the frames, B x F of them, or None.
    """

    ids: np.ndarray
    positions: np.ndarray
    places: np.ndarray
    features: np.ndarray
    asked: np.ndarray
    answers: np.ndarray
    plan: PicturePlan | None


@dataclass
class Row:
    """One sample as tokens: where an answer's next token is asked for, and where each frame starts."""

    ids: list[int]
    asked: list[int]
    positions: np.ndarray
    starts: list[int]


class Writer:
    """Writes samples as the chat template and the stream form do."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.start, self.end, self.vision_start, self.vision_end, self.pad = (
            tokenizer.token_to_id(name) or 0 for name in (START, END, VISION_START, VISION_END, IMAGE_PAD)
        )
        self.encode: Callable[[str], list[int]] = functools.lru_cache(maxsize=100_000)(self._encode)
        self.new_line = self.encode("\n")
        self.system = [self.start, *self.encode(f"system\n{DEFAULT_SYSTEM}"), self.end, *self.new_line]
        self.user = [self.start, *self.encode("user\n")]
        self.assistant = [self.start, *self.encode("assistant\n")]
        self.frame = [self.pad] * FRAME_TOKENS

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def row(self, sample: Sample, limit: int, num_turns: int | None = None) -> Row | None:
        """The sample in at most `limit` tokens (the last answer's end not counted), or None if no turn
        fits."""
        ids, starts = self._opening(sample)
        asked: list[int] = []
        for number, turn in enumerate(sample.turns[:num_turns]):
            question = [*self.user] if number or sample.form != CHAT else []
            question += [*self.encode(turn.question), self.end, *self.new_line, *self.assistant]
            answer = [*self.encode(turn.answer), self.end]
            if len(ids) + len(question) + len(answer) - 1 > limit:
                break
            asked += range(len(ids) + len(question) - 1, len(ids) + len(question) + len(answer) - 1)
            ids += question + answer
            ids += self.new_line
        if not asked:
            return None
        return Row(ids, asked, self._positions(sample, len(ids), starts), starts)

    def prompt(self, sample: Sample) -> Row:
        """Everything up to the first answer."""
        ids, starts = self._opening(sample)
        ids += [] if sample.form == CHAT else self.user
        ids += [*self.encode(sample.turns[0].question), self.end, *self.new_line, *self.assistant]
        return Row(ids, [len(ids) - 1], self._positions(sample, len(ids), starts), starts)

    def _opening(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Tokens before the first question, and where each frame starts."""
        starts, ids = [], []
        if sample.form == STREAM:
            starts = [1 + FRAME_TOKENS * number for number in range(len(sample.frames))]
            ids = [self.vision_start, *self.frame * len(sample.frames), self.vision_end, *self.system]
        elif sample.form == TEXT:
            ids = [*self.system]
        else:
            ids = [*self.system, *self.user]
            for _ in sample.frames:
                starts.append(len(ids) + 1)
                ids += [self.vision_start, *self.frame, self.vision_end]
        return ids, starts

    def _positions(self, sample: Sample, length: int, starts: list[int]) -> np.ndarray:
        """int64 [3, T] (spec: "Positions, the rule that holds" and "Streaming")."""
        times = sample.times if sample.form == STREAM else None
        return positions(length, starts, times)


ROWS, COLUMNS = np.divmod(np.arange(FRAME_TOKENS), GRID)


def positions(length: int, starts: list[int], times: list[float] | None) -> np.ndarray:
    """Positions [3, length] where frames of 16 tokens begin at `starts`.

    With `times` (seconds) the frames are one span and stand side by side; without, each is a picture of its
    own.
    """
    out = np.empty((3, length), np.int64)
    at, place = 0, 0  # next token, next position
    if times is not None and starts:
        out[:, 0] = 0
        steps = np.floor(np.asarray(times) * TOKENS_PER_SECOND + 1e-6).astype(np.int64)
        count = len(starts) * FRAME_TOKENS
        out[0, 1 : 1 + count] = 1 + np.repeat(steps, FRAME_TOKENS)
        out[1, 1 : 1 + count] = 1 + np.tile(ROWS, len(starts))
        out[2, 1 : 1 + count] = 1 + np.tile(COLUMNS, len(starts))
        at, place = 1 + count, 2 + max(int(steps[-1]), GRID - 1)
        starts = []
    for start in starts:
        out[:, at:start] = place + np.arange(start - at)
        place += start - at
        out[0, start : start + FRAME_TOKENS] = place
        out[1, start : start + FRAME_TOKENS] = place + ROWS
        out[2, start : start + FRAME_TOKENS] = place + COLUMNS
        at, place = start + FRAME_TOKENS, place + GRID
    out[:, at:] = place + np.arange(length - at)
    return out


def join(rows: list[Row], frames: list[list[Picture]], length: int, most: int, world: World) -> Batch:
    """Rows of one length as a batch; every row gets `most` frames, empty ones at the end."""
    batch = len(rows)
    ids = np.zeros((batch, length), np.int64)
    places_3d = np.zeros((3, batch, length), np.int64)
    asked, answers, places, features = [], [], [], []
    token = np.arange(FRAME_TOKENS)
    for number, row in enumerate(rows):
        used = row.ids[:length]
        ids[number, : len(used)] = used
        places_3d[:, number, : len(used)] = row.positions[:, :length]
        first = number * length
        asked += [first + place for place in row.asked]
        answers += [row.ids[place + 1] if place + 1 < len(row.ids) else 0 for place in row.asked]
        for frame, start in enumerate(row.starts):
            places.append(first + start + token)
            features.append((number * most + frame) * FRAME_TOKENS + token)
    plan = None
    if most:
        pictures = [picture for each in frames for picture in each + [EMPTY] * (most - len(each))]
        plan = plan_pictures(pictures, world)
    empty = np.zeros(0, np.int64)
    return Batch(
        ids,
        places_3d,
        np.concatenate(places) if places else empty,
        np.concatenate(features) if features else empty,
        np.asarray(asked, np.int64),
        np.asarray(answers, np.int64),
        plan,
    )


@dataclass(frozen=True)
class Bucket:
    """Batches of one shape: what is in a row, frames a row, tokens a row, turns a row."""

    name: str
    num_frames: int
    length: int
    num_turns: int = 1

    def batch_size(self, num_pictures: int) -> int:
        """Rows, so that every batch has the same number of frames."""
        return (
            max(1, num_pictures // max(1, self.num_frames)) if self.num_frames else max(1, num_pictures // 4)
        )


BUCKETS = {
    bucket.name: bucket
    for bucket in (
        Bucket("picture", 1, 64),
        Bucket("dialogue", 1, 128, 2),
        Bucket("pair", 2, 128, 2),
        Bucket("text", 0, 64),
        Bucket("stream4", 4, 192, 3),
        Bucket("stream8", 8, 256, 4),
        Bucket("stream16", 16, 384, 4),
        Bucket("stream32", 32, 640, 4),
        Bucket("stream64", 64, 1152, 4),
    )
}


def bucket_weights(progress: float) -> dict[str, float]:
    """Which second batch a step takes: short streams first, long ones later."""
    if progress < 0.12:
        return {"dialogue": 0.2, "pair": 0.2, "text": 0.05, "stream4": 0.55}
    if progress < 0.3:
        return {"dialogue": 0.1, "pair": 0.1, "text": 0.05, "stream4": 0.35, "stream8": 0.4}
    if progress < 0.5:
        return {
            "dialogue": 0.1,
            "pair": 0.06,
            "text": 0.05,
            "stream4": 0.14,
            "stream8": 0.3,
            "stream16": 0.35,
        }
    return {
        "dialogue": 0.1,
        "pair": 0.05,
        "text": 0.05,
        "stream4": 0.1,
        "stream8": 0.18,
        "stream16": 0.28,
        "stream32": 0.16,
        "stream64": 0.08,
    }


class Planner:
    """Plans the batches of one split; the same numbers give the same batch."""

    def __init__(self, world: World, tokenizer: Tokenizer, split: str, seed: int, num_pictures: int):
        self.world, self.writer, self.split = world, Writer(tokenizer), split
        self.seed, self.num_pictures = seed, num_pictures
        self.style = Style.of(world, split)

    def pictures(self, step: int) -> PicturePlan:
        """Frames alone, for the dense start of the vision encoder: many signs, since reading is what is
        slow."""
        rng = rng_of(self.split, self.seed, 0, step)
        sorts = rng.choices(
            ("sign", "thing", "digit", "flag", "group"), (45, 36, 6, 3, 10), k=self.num_pictures
        )
        samples = [picture_sample(self.world, self.style, rng, sort) for sort in sorts]
        return plan_pictures([sample.frames[0].picture for sample in samples], self.world)

    def step(self, step: int, progress: float) -> tuple[Batch, Batch, str]:
        """The two batches of one training step, and the name of the second one's bucket."""
        rng = rng_of(self.split, self.seed, 1, step)
        weights = bucket_weights(progress)
        bucket = BUCKETS[rng.choices(list(weights), list(weights.values()))[0]]
        return self.batch(BUCKETS["picture"], rng), self.batch(bucket, rng), bucket.name

    def batch(self, bucket: Bucket, rng: Random) -> Batch:
        """A full batch of a bucket."""
        rows: list[Row] = []
        frames: list[list[Picture]] = []
        while len(rows) < bucket.batch_size(self.num_pictures):
            sample = self._sample(bucket, rng)
            if bucket.name == "picture":
                rng.shuffle(sample.turns)
            row = self.writer.row(sample, bucket.length, bucket.num_turns)
            if row is not None:
                rows.append(row)
                frames.append([frame.picture for frame in sample.frames])
        return join(rows, frames, bucket.length, bucket.num_frames, self.world)

    def _sample(self, bucket: Bucket, rng: Random) -> Sample:
        if bucket.name == "text":
            return text_sample(self.world, rng)
        if bucket.name == "pair":
            return pair_sample(self.world, self.style, rng)
        if bucket.num_frames == 1:
            sort = (
                None if bucket.name == "picture" else rng.choice(("group", "group", "thing", "flag", "sign"))
            )
            return picture_sample(self.world, self.style, rng, sort)
        frames = (
            bucket.num_frames
            if rng.random() < 0.5
            else rng.randint(bucket.num_frames // 2 + 1, bucket.num_frames)
        )
        rate = 2.0 if rng.random() < 0.6 else None
        return stream_sample(self.world, self.style, rng, StreamSize(frames, None, bucket.num_turns, rate))


def endless(make: Callable[[int], Any], first: int, workers: int) -> Iterator[Any]:
    """make(first), make(first + 1), ... in order, made ahead by `workers` processes (0: here)."""
    if workers == 0:
        number = first
        while True:
            yield make(number)
            number += 1
    loader: DataLoader = DataLoader(
        _Calls(make),
        batch_size=None,
        sampler=_Count(first),
        num_workers=workers,
        prefetch_factor=4,
        collate_fn=_as_it_is,
    )
    yield from loader


def _as_it_is(value: Any) -> Any:
    return value


@dataclass
class _Count:
    first: int

    def __iter__(self) -> Iterator[int]:
        number = self.first
        while True:
            yield number
            number += 1


class _Calls(Dataset):
    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __getitem__(self, number: int) -> Any:
        return self.make(number)

    def __len__(self) -> int:
        return 1 << 60
