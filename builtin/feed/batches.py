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

from builtin.feed.buckets import (
    BUCKETS,
    Bucket,
    bucket_weights,
    draw_pool,
    draw_sample,
    keyed_weights,
)
from builtin.world.frames import Style
from builtin.world.packs import World
from builtin.world.render import Picture, PicturePlan, plan_pictures
from builtin.world.splits import rng_of
from builtin.world.tasks import CHAT, STREAM, TEXT, Sample, picture_sample
from infinitevl.errors import InputError
from infinitevl.interrupt import ignore_interrupts
from infinitevl.processing.prompt import DEFAULT_SYSTEM, END, IMAGE_PAD, START, VISION_END, VISION_START

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


class Planner:
    """Plans the batches of one split; the same numbers give the same batch.

    keyed_share: how many of the second batches practise keyed recall, 0..1.
    """

    def __init__(
        self,
        world: World,
        tokenizer: Tokenizer,
        split: str,
        seed: int,
        num_pictures: int,
        keyed_share: float = 0.0,
        looks: float = 0.0,
    ):
        self.world, self.writer, self.split = world, Writer(tokenizer), split
        self.seed, self.num_pictures, self.keyed_share = seed, num_pictures, keyed_share
        self.style = Style.of(world, split, looks=looks)

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
        is_keyed = self.keyed_share > 0 and rng.random() < self.keyed_share
        weights = keyed_weights(progress) if is_keyed else bucket_weights(progress)
        bucket = BUCKETS[rng.choices(list(weights), list(weights.values()))[0]]
        return self.batch(BUCKETS["picture"], rng), self.batch(bucket, rng), bucket.name

    def batch(self, bucket: Bucket, rng: Random) -> Batch:
        """A full batch of a bucket."""
        rows, frames = self.rows(bucket, rng, bucket.length)
        return join(rows, frames, bucket.length, bucket.num_frames, self.world)

    def rows(self, bucket: Bucket, rng: Random, limit: int) -> tuple[list[Row], list[list[Picture]]]:
        """The rows of a batch with the pictures of each; tokens and missing frames fit in `limit`.

        Raises:
            InputError: samples of this bucket are longer than that.
        """
        rows: list[Row] = []
        frames: list[list[Picture]] = []
        num_tries, pool = 0, draw_pool(bucket, self.world, self.style, rng)
        while len(rows) < bucket.batch_size(self.num_pictures):
            sample = draw_sample(bucket, self.world, self.style, rng, pool)
            missing = FRAME_TOKENS * (bucket.num_frames - len(sample.frames))
            row = self.writer.row(sample, limit - missing, bucket.num_turns)
            num_tries += 1
            if row is not None:
                rows.append(row)
                frames.append([frame.picture for frame in sample.frames])
            elif num_tries > 1000 * (len(rows) + 1):
                raise InputError(f"no sample of {bucket.name!r} fits in {limit} tokens of this vocabulary.")
        return rows, frames


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
        worker_init_fn=ignore_interrupts,
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
