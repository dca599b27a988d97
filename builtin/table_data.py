"""What all rows of the tables learn from: batches drawn once, pictures already seen by the teacher's frozen
vision encoder, one file a step.

A row then reads features instead of pixels, through the same stages as any other student.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from builtin.table_plan import Plan
from infinitevl.files import atomic_write
from infinitevl.model.fused import fuse_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.run import Feed
from infinitevl.training.scenes import SceneFeed
from infinitevl.training.stages.reading import Batch

INDEX = "index.json"


class Seen(nn.Module):
    """Stands where a vision encoder stood: what it is given are features already."""

    def forward(self, features: Tensor, grids: Any) -> Tensor:
        """[N, C] -> [N, C]."""
        return features


class StoredFeed:
    """A `Feed` of the steps in a folder, in an order of its own, over and over.

    seed: of the order. first: how many steps were taken before (by an earlier stage).
    """

    def __init__(self, folder: Path, seed: int, first: int = 0):
        count = json.loads((folder / INDEX).read_text())["num_steps"]
        self.files = [folder / f"{number}.pt" for number in range(count)]
        self.order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        self.first, self.done = first, 0
        self._reader = ThreadPoolExecutor(1)
        self._ahead: Future[list[Batch]] = self._read()

    def next(self) -> Sequence[Batch]:
        """The batches of the next step, in host memory."""
        batches = self._ahead.result()
        self.done += 1
        self._ahead = self._read()
        return batches

    def state(self) -> dict[str, int]:
        """How many steps were taken."""
        return {"stored": self.done}

    def go_on(self, state: dict[Any, Any]) -> None:
        """Stand where a run stood."""
        self.done = state["stored"]
        self._ahead = self._read()

    def _read(self) -> Future[list[Batch]]:
        path = self.files[self.order[(self.first + self.done) % len(self.order)]]
        return self._reader.submit(torch.load, path, weights_only=True)


def is_stored(folder: Path) -> bool:
    """Whether the steps were drawn already."""
    return (folder / INDEX).exists()


def store_scenes(plan: Plan, teacher: InfiniteVLForConditionalGeneration, folder: Path) -> int:
    """Draw the plan's steps, as many as its minutes allow; returns how many."""
    tokenizer = Tokenizer.from_file(str(plan.tokenizer))
    data, device = plan.data, teacher.device
    places = {"workers": data.workers, "device": device, "dtype": teacher.dtype}
    feed = SceneFeed(plan.scenes, tokenizer, data.seed, data.num_steps, **places)
    if device.type == "cuda":
        fuse_(teacher.model.visual)
    return store(feed, teacher, folder, data.num_steps, data.minutes * 60)


@torch.inference_mode()
def store(
    feed: Feed, teacher: InfiniteVLForConditionalGeneration, folder: Path, num_steps: int, seconds: float
) -> int:
    """Write steps of `feed` with features in the place of pixels, until there are enough or time is over."""
    folder.mkdir(parents=True, exist_ok=True)
    start, number, visual = time.perf_counter(), 0, teacher.model.visual
    while number < num_steps and (number == 0 or time.perf_counter() - start < seconds):
        batches = [_seen(batch, visual) for batch in feed.next()]
        torch.save(batches, folder / f"{number}.pt")
        number += 1
    facts = {"num_steps": number, "seconds": round(time.perf_counter() - start, 1)}
    with atomic_write(folder / INDEX) as path:
        path.write_text(json.dumps(facts))
    return number


def _seen(batch: Batch, visual: nn.Module) -> Batch:
    """The batch in host memory, with features for pixels."""
    found = dict(batch)
    if "pixel_values" in batch:
        found["pixel_values"] = visual(batch["pixel_values"], batch["image_grid_thw"])
    return {key: value.cpu() for key, value in found.items()}
