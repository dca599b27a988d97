"""What a batch of the small world holds: one sort of sample, all of one shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from builtin.world.frames import Frame, Style
from builtin.world.packs import World
from builtin.world.streams import (
    StreamSize,
    keyed_sample,
    long_sample,
    order_sample,
    paint_pool,
    recall_sample,
    stream_sample,
)
from builtin.world.tasks import Sample, pair_sample, picture_sample, text_sample

MOST_SIGNS = 8  # that a stream for practice of recall has
_EVERYDAY_RATE = 2.0  # frames a second
_READING_MIX = {"sign": 45, "thing": 36, "digit": 6, "flag": 3, "group": 10}
_DIALOGUES = ("group", "group", "thing", "flag", "sign")


@dataclass(frozen=True)
class Bucket:
    """Batches of one shape: what is in a row, frames a row, tokens a row, turns a row.

    pool: pictures without signs that a batch draws once and its rows show again and again, so that a long
    stream costs few pictures; None: every frame has a picture of its own.
    """

    name: str
    num_frames: int
    length: int
    num_turns: int = 1
    pool: int | None = None

    def batch_size(self, num_pictures: int) -> int:
        """Rows, so that every batch has the same number of frames."""
        return (
            max(1, num_pictures // max(1, self.num_frames)) if self.num_frames else max(1, num_pictures // 4)
        )

    def num_drawn(self, num_rows: int) -> int:
        """Pictures of a batch that are drawn, the empty one among them where there is a pool."""
        if self.pool is None:
            return num_rows * self.num_frames
        return self.pool + num_rows * MOST_SIGNS + 1


BUCKETS = {
    bucket.name: bucket
    for bucket in (
        Bucket("reading", 1, 80),
        Bucket("picture", 1, 80),
        Bucket("dialogue", 1, 128, 2),
        Bucket("pair", 2, 128, 2),
        Bucket("text", 0, 64),
        Bucket("stream4", 4, 192, 3),
        Bucket("stream8", 8, 256, 4),
        Bucket("stream16", 16, 384, 4),
        Bucket("stream32", 32, 640, 4),
        Bucket("stream64", 64, 1152, 4),
        Bucket("keyed3", 3, 256, 6),
        Bucket("keyed4", 4, 256, 6),
        Bucket("keyed5", 5, 320, 6),
        Bucket("keyed8", 8, 384, 6),
        Bucket("keyed16", 16, 512, 6),
        Bucket("keyed32", 32, 768, 8),
        Bucket("keyed64", 64, 1280, 8),
        Bucket("order3", 3, 256, 6),
        Bucket("order4", 4, 320, 8),
        Bucket("order6", 6, 384, 10),
        Bucket("order8", 8, 448, 10),
        Bucket("order16", 16, 576, 10),
        Bucket("order32", 32, 832, 10),
        Bucket("order64", 64, 1344, 10),
        Bucket("recall16", 16, 512, 8),
        Bucket("recall64", 64, 1280, 8),
        Bucket("recall128", 128, 2304, 8),
        Bucket("recall256", 256, 4352, 8),
        Bucket("recall512", 512, 8448, 8),
        Bucket("recall1024", 1024, 16640, 8),
        Bucket("long16", 16, 640, 11, 8),
        Bucket("long256", 256, 4480, 11, 2048),
        Bucket("long512", 512, 8576, 11, 2048),
        Bucket("long1024", 1024, 16768, 11, 2048),
        Bucket("long2048", 2048, 33152, 11, 2048),
        Bucket("long4096", 4096, 65920, 11, 2048),
        Bucket("long10240", 10240, 164224, 11, 2048),
    )
}


def draw_pool(bucket: Bucket, world: World, style: Style, rng: Random) -> list[Frame]:
    """What the rows of a batch share; nothing where the bucket has no pool."""
    return paint_pool(world, style, rng, bucket.pool) if bucket.pool else []


def draw_sample(
    bucket: Bucket, world: World, style: Style, rng: Random, pool: Sequence[Frame] = ()
) -> Sample:
    """A sample of the bucket's sort, with at most its number of frames; `pool` as from `draw_pool`."""
    if bucket.pool is not None:
        return long_sample(world, style, rng, _recall_size(bucket, rng), pool)
    sort = bucket.name.rstrip("0123456789")
    return _MAKERS[sort](bucket, world, style, rng)


def _text(bucket: Bucket, world: World, style: Style, rng: Random) -> Sample:
    return text_sample(world, rng)


def _picture(bucket: Bucket, world: World, style: Style, rng: Random) -> Sample:
    sample = picture_sample(world, style, rng)
    rng.shuffle(sample.turns)
    return sample


def _reading(bucket: Bucket, world: World, style: Style, rng: Random) -> Sample:
    """Many signs, since reading is what an encoder is slow to learn."""
    return picture_sample(world, style, rng, rng.choices(list(_READING_MIX), list(_READING_MIX.values()))[0])


def _dialogue(bucket: Bucket, world: World, style: Style, rng: Random) -> Sample:
    return picture_sample(world, style, rng, rng.choice(_DIALOGUES))


def _pair(bucket: Bucket, world: World, style: Style, rng: Random) -> Sample:
    return pair_sample(world, style, rng)


def _stream(bucket: Bucket, world: World, style: Style, rng: Random) -> Sample:
    most = bucket.num_frames
    frames = most if rng.random() < 0.5 else rng.randint(most // 2 + 1, most)
    return stream_sample(world, style, rng, StreamSize(frames, None, bucket.num_turns, _rate(rng)))


def _keyed(bucket: Bucket, world: World, style: Style, rng: Random) -> Sample:
    """Nearly only signs in short streams, so that there is much to learn from; fewer in long ones."""
    most = min(bucket.num_frames, MOST_SIGNS)
    least = most if bucket.num_frames <= MOST_SIGNS else most // 2
    return keyed_sample(world, style, rng, bucket.num_frames, rng.randint(least, most))


def _order(bucket: Bucket, world: World, style: Style, rng: Random) -> Sample:
    """Few signs, so that most frames can be asked for by what is on them."""
    most = min(bucket.num_frames, MOST_SIGNS)
    signs = rng.randint(0, most // 2) if rng.random() < 0.6 else rng.randint(0, most)
    return order_sample(world, style, rng, StreamSize(bucket.num_frames, signs, bucket.num_turns, _rate(rng)))


def _recall(bucket: Bucket, world: World, style: Style, rng: Random) -> Sample:
    return recall_sample(world, style, rng, _recall_size(bucket, rng))


def _recall_size(bucket: Bucket, rng: Random) -> StreamSize:
    most = bucket.num_frames
    frames = most if rng.random() < 0.5 else rng.randint(most // 2 + 1, most)
    return StreamSize(frames, rng.randint(1, MOST_SIGNS), bucket.num_turns, _rate(rng))


def _rate(rng: Random) -> float | None:
    return _EVERYDAY_RATE if rng.random() < 0.6 else None


_MAKERS: dict[str, Callable[[Bucket, World, Style, Random], Sample]] = {
    "text": _text,
    "reading": _reading,
    "picture": _picture,
    "dialogue": _dialogue,
    "pair": _pair,
    "stream": _stream,
    "keyed": _keyed,
    "order": _order,
    "recall": _recall,
}
