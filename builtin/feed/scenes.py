"""The small world as what a stage learns from: planned in worker processes, drawn on the device."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from builtin.feed.batches import EMPTY, FRAME_TOKENS, Planner, Row, endless
from builtin.feed.buckets import BUCKETS, Bucket
from builtin.feed.settings import DrawSettings, SceneSettings
from builtin.world.packs import World, load_world
from builtin.world.render import FRAME_SIZE, PATCH, Picture, PicturePlan, plan_pictures, render
from builtin.world.splits import rng_of
from infinitevl.processing.images import frame_patches
from infinitevl.training.losses import IGNORED
from infinitevl.training.run import check_same_run
from infinitevl.training.stages.reading import Batch

_STREAM_OF_NUMBERS = 3  # beside those of the supervised loop, which draws from 0 to 2


@dataclass(frozen=True)
class Plan:
    """A batch without its pixels: B rows of T tokens and F frames, N pictures.

    ids, labels: int64 [B, T]. positions: int64 [3, B, T]. real: bool [B, T]. pictures: None for text.
    shown: int64 [B F], which picture each frame shows; None where each frame has its own, in order.
    """

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    real: np.ndarray
    pictures: PicturePlan | None
    shown: np.ndarray | None = None


class ScenePlanner:
    """Plans the batches of a step from its number alone; cheap, and without pixels."""

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
        self.planner = Planner(world, tokenizer, settings.split, seed, 0, looks=settings.looks)

    def step(self, step: int) -> list[Plan]:
        """The batches of step 0, 1, ...: one of each draw."""
        return [self._batch(draw, step, number) for number, draw in enumerate(self.settings.draws)]

    def _batch(self, draw: DrawSettings, step: int, number: int) -> Plan:
        rng = rng_of(self.settings.split, self.seed, _STREAM_OF_NUMBERS, step, self.rank, number)
        weights = weights_at(draw, step / self.num_steps)
        bucket = BUCKETS[rng.choices(list(weights), list(weights.values()))[0]]
        return plan_batch(self.planner, bucket, rng, draw.num_pictures)


def weights_at(draw: DrawSettings, progress: float) -> dict[str, float]:
    """How often each bucket is taken, at a progress of 0..1."""
    last = draw.buckets if draw.buckets_at_end is None else draw.buckets_at_end
    names = [*draw.buckets, *(name for name in last if name not in draw.buckets)]
    return {
        name: (1 - progress) * draw.buckets.get(name, 0.0) + progress * last.get(name, 0.0) for name in names
    }


def plan_batch(planner: Planner, bucket: Bucket, rng: Random, num_pictures: int) -> Plan:
    """A batch of a bucket, always with the same number of pictures.

    Where the bucket has a pool, `num_pictures` counts what rows show, not what is drawn.

    A row with fewer frames than others has empty ones at its end, where no answer sees them.
    """
    planner.num_pictures = num_pictures
    rows, frames = planner.rows(bucket, rng, bucket.length - 1)  # every answer's end has a place
    return join_rows(rows, frames, bucket, planner.world, planner.writer.pad)


def join_rows(rows: list[Row], frames: list[list[Picture]], bucket: Bucket, world: World, pad: int) -> Plan:
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
    return Plan(ids, positions, labels, real, plan_pictures(pictures, world) if pictures else None, shown)


def _drawn_once(pictures: list[Picture], count: int) -> tuple[list[Picture], np.ndarray]:
    """Each picture once, filled up to `count` with empty ones, and which of them stands where."""
    distinct = {id(picture): picture for picture in pictures}
    number = {key: place for place, key in enumerate(distinct)}
    drawn = [*distinct.values()]
    shown = np.asarray([number[id(picture)] for picture in pictures], np.int64)
    return drawn + [EMPTY] * (count - len(drawn)), shown


class SceneFeed:
    """Batches of the small world for a stage; the same seed, step and rank give the same ones.

    Args:
        num_steps: of the stage, where the buckets' weights end. workers: processes that plan ahead.
        device: where pictures are drawn. dtype: of their patches. rank: of this process.
    """

    def __init__(
        self,
        settings: SceneSettings,
        tokenizer: Tokenizer,
        seed: int,
        num_steps: int,
        *,
        workers: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
    ):
        world, self.textures = load_world(settings.pack, device=device)
        self.planner = ScenePlanner(settings, world, tokenizer, seed, num_steps, rank)
        self.device, self.dtype, self.workers = torch.device(device), dtype, workers
        self.noise = torch.Generator(self.device)
        self.skipped: dict[str, str] = {}  # a drawn sample is never bad
        self._begin(0)

    def next(self) -> Sequence[Batch]:
        """The batches of the next step, on the device."""
        plans = next(self._plans)
        batches = [self._draw(plan, number) for number, plan in enumerate(plans)]
        self.num_done += 1
        return batches

    def state(self) -> dict[str, Any]:
        """How many steps were taken, and of which settings."""
        return {f"scenes-{self.planner.rank}": self.num_done, "scenes": self._identity}

    def go_on(self, state: dict[Any, Any]) -> None:
        """Stand where a run stood.

        Raises:
            InfiniteVLError: it drew from other settings, which are named.
        """
        check_same_run(state["scenes"], self._identity)
        self._begin(state[f"scenes-{self.planner.rank}"])

    @property
    def _identity(self) -> dict[str, Any]:
        """What decides which batches come, as plain values."""
        return self.planner.settings.model_dump(mode="json", exclude={"pack"})

    def _begin(self, step: int) -> None:
        self.num_done = step
        self._plans: Iterator[list[Plan]] = endless(self.planner.step, step, self.workers)

    @torch.no_grad()
    def _draw(self, plan: Plan, number: int) -> Batch:
        batch: Batch = {
            "input_ids": self._send(plan.ids),
            "position_ids": self._send(plan.positions),
            "labels": self._send(plan.labels),
            "attention_mask": self._send(plan.real),
        }
        if plan.pictures is not None:
            self.noise.manual_seed(_noise_seed(self.planner, self.num_done, number))
            frames = render(plan.pictures, self.textures, self.noise)
            batch["pixel_values"] = frame_patches(frames).to(self.dtype)
            batch["image_grid_thw"] = _grids(len(frames), self.device)
        if plan.shown is not None:
            batch["shown_images"] = self._send(plan.shown)
        return batch

    def _send(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return (
            tensor.pin_memory().to(self.device, non_blocking=True)
            if self.noise.device.type == "cuda"
            else tensor
        )


@functools.lru_cache(maxsize=32)
def _grids(num_pictures: int, device: torch.device) -> Tensor:
    side = FRAME_SIZE // PATCH
    return torch.tensor([[1, side, side]] * num_pictures, device=device)


def _noise_seed(planner: ScenePlanner, step: int, number: int) -> int:
    return rng_of(planner.settings.split, planner.seed, step, planner.rank, number).getrandbits(63)
