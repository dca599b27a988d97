"""The small world as the feed of a stage: planned in worker processes, drawn on the device."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from builtin.feed.ahead import endless
from builtin.feed.plans import Plan, Planner
from builtin.feed.settings import SceneSettings
from builtin.world.packs import load_world
from builtin.world.render import FRAME_SIZE, PATCH, PatchNamer, render
from builtin.world.splits import rng_of
from infinitevl.processing.pictures.patches import frame_patches
from infinitevl.training.checkpoint import check_same_run
from infinitevl.training.stages.inputs import Batch


class SceneFeed:
    """Batches of the small world for a stage; the same seed, step and rank give the same ones.

    Where a draw is `named`, its batches hold "characters" and "objects", int64 [N, 64], as `PatchNames` does.

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
        self.planner = Planner(settings, world, tokenizer, seed, num_steps, rank)
        self.namer = PatchNamer(world, self.textures)
        self.device, self.dtype, self.workers = torch.device(device), dtype, workers
        self.noise = torch.Generator(self.device)
        self.skipped: dict[str, str] = {}  # a drawn sample is never bad
        self._begin(0)

    def next_batches(self) -> Sequence[Batch]:
        """The batches of the next step, on the device."""
        plans = next(self._plans)
        batches = [self.draw(plan, number) for number, plan in enumerate(plans)]
        self.num_done += 1
        return batches

    def state_dict(self) -> dict[str, Any]:
        """How many steps were taken, and of which settings."""
        return {f"scenes-{self.planner.rank}": self.num_done, "scenes": self._identity}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        """Stand where a run stood.

        Raises:
            InfiniteVLError: it drew from other settings, which are named.
        """
        check_same_run(state["scenes"], self._identity)
        # all processes take equally many steps, also those that were not there before
        self._begin(state.get(f"scenes-{self.planner.rank}", state["scenes-0"]))

    @property
    def _identity(self) -> dict[str, Any]:
        """What decides which batches come, as plain values."""
        return self.planner.settings.model_dump(mode="json", exclude={"pack"})

    def _begin(self, step: int) -> None:
        self.num_done = step
        self._plans: Iterator[list[Plan]] = endless(self.planner.step, step, self.workers)

    @torch.no_grad()
    def draw(self, plan: Plan, number: int) -> Batch:
        """A plan, the step's number `number`, as tensors with pixels."""
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
            if plan.named:
                names = self.namer(plan.pictures)
                batch |= {"characters": names.characters, "objects": names.objects}
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


def _noise_seed(planner: Planner, step: int, number: int) -> int:
    return rng_of(planner.settings.split, planner.seed, step, planner.rank, number).getrandbits(63)
