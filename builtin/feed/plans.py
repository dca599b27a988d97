"""Batches of the small world before they are drawn: rows of tokens, and what is on each picture.

Everything here is cheap and free of pixels; it runs in worker processes.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
from tokenizers import Tokenizer

from builtin.feed.buckets import BUCKETS, Bucket, draw_pool, draw_sample
from builtin.feed.rows import FRAME_TOKENS, Row, Writer
from builtin.feed.settings import DrawSettings, SceneSettings
from builtin.world.frames import Style
from builtin.world.packs import World
from builtin.world.render import Picture, PicturePlan, plan_pictures
from builtin.world.splits import rng_of
from infinitevl.errors import InputError
from infinitevl.training.losses import IGNORED

EMPTY = Picture(((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
_STREAM_OF_NUMBERS = 3  # of the random numbers of batches, beside those of other uses of a seed


@dataclass(frozen=True)
class Plan:
    """A batch without its pixels: B rows of T tokens and F frames, N pictures.

    ids, labels: int64 [B, T]. positions: int64 [3, B, T]. real: bool [B, T]. pictures: None for text.
    shown: int64 [B F], which picture each frame shows; None where each frame has its own, in order.
    named: whether the batch also says what is under each patch.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    real: np.ndarray
    pictures: PicturePlan | None
    shown: np.ndarray | None = None
    named: bool = False


class Planner:
    """Plans the batches of a step from its number alone.

    Args:
        num_steps: of the stage, where the buckets' weights end. rank: of this process.
    """

    def __init__(
        self,
        settings: SceneSettings,
        world: World,
        tokenizer: Tokenizer,
        seed: int,
        num_steps: int,
        rank: int = 0,
    ):
        self.settings, self.seed, self.num_steps, self.rank = settings, seed, num_steps, rank
        self.world, self.writer = world, Writer(tokenizer)
        self.style = Style.of(
            world, settings.split, looks=settings.looks, wide=settings.wide, own_words=settings.own_words
        )

    def step(self, step: int) -> list[Plan]:
        """The batches of step 0, 1, ...: one of each draw."""
        return [self._batch(draw, step, number) for number, draw in enumerate(self.settings.draws)]

    def _batch(self, draw: DrawSettings, step: int, number: int) -> Plan:
        rng = rng_of(self.settings.split, self.seed, _STREAM_OF_NUMBERS, step, self.rank, number)
        weights = weights_at(draw, step / self.num_steps)
        bucket = BUCKETS[rng.choices(list(weights), list(weights.values()))[0]]
        return self.batch(bucket, rng, draw.num_pictures, draw.named)

    def batch(self, bucket: Bucket, rng: Random, num_pictures: int, named: bool = False) -> Plan:
        """A batch of a bucket, always with the same number of pictures.

        Where the bucket has a pool, `num_pictures` counts what rows show, not what is drawn. A row with fewer
        frames than others has empty ones at its end, where no answer sees them.
        """
        # one token less, so that every answer's end has a place
        rows, frames = self.rows(bucket, rng, bucket.batch_size(num_pictures), bucket.length - 1)
        return join_rows(rows, frames, bucket, self.world, self.writer.pad, named)

    def rows(
        self, bucket: Bucket, rng: Random, count: int, limit: int
    ) -> tuple[list[Row], list[list[Picture]]]:
        """`count` rows of a batch with the pictures of each; tokens and missing frames fit in `limit`.

        Raises:
            InputError: samples of this bucket are longer than that.
        """
        rows: list[Row] = []
        frames: list[list[Picture]] = []
        num_tries, pool = 0, draw_pool(bucket, self.world, self.style, rng)
        while len(rows) < count:
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


def weights_at(draw: DrawSettings, progress: float) -> dict[str, float]:
    """How often each bucket is taken, at a progress of 0..1."""
    last = draw.buckets if draw.buckets_at_end is None else draw.buckets_at_end
    names = [*draw.buckets, *(name for name in last if name not in draw.buckets)]
    return {
        name: (1 - progress) * draw.buckets.get(name, 0.0) + progress * last.get(name, 0.0) for name in names
    }


def join_rows(
    rows: list[Row], frames: list[list[Picture]], bucket: Bucket, world: World, pad: int, named: bool = False
) -> Plan:
    """Rows of one bucket as a batch; `pad` is the token that a picture's features replace."""
    shape = (len(rows), bucket.length)
    ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    positions, real = np.zeros((3, *shape), np.int64), np.zeros(shape, bool)
    for number, row in enumerate(rows):
        missing = FRAME_TOKENS * (bucket.num_frames - len(frames[number]))
        used = row.ids[: bucket.length - missing]
        ids[number, : len(used)], real[number, : len(used)] = used, True
        ids[number, bucket.length - missing :] = pad
        positions[:, number, : len(used)] = row.positions[:, : len(used)]
        for place in row.asked:
            labels[number, place + 1] = row.ids[place + 1]
    pictures = [picture for each in frames for picture in each + [EMPTY] * (bucket.num_frames - len(each))]
    shown = None
    if bucket.pool is not None:
        pictures, shown = _drawn_once(pictures, bucket.num_drawn(len(rows)))
    drawn = plan_pictures(pictures, world) if pictures else None
    return Plan(ids, positions, labels, real, drawn, shown, named)


def _drawn_once(pictures: list[Picture], count: int) -> tuple[list[Picture], np.ndarray]:
    """Each picture once, filled up to `count` with empty ones, and which of them stands where."""
    distinct = {id(picture): picture for picture in pictures}
    number = {key: place for place, key in enumerate(distinct)}
    drawn = [*distinct.values()]
    shown = np.asarray([number[id(picture)] for picture in pictures], np.int64)
    return drawn + [EMPTY] * (count - len(drawn)), shown
