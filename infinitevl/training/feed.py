"""Feeds the data of a recipe to a `Trainer`, packed into rows."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from infinitevl.config import InfiniteVLConfig
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.training.data.loading import BatchPlan, LoadedBatch, Loader, ShardState
from infinitevl.training.data.mixture import Mixture
from infinitevl.training.data.public import open_mixture, read_public_data
from infinitevl.training.data.source import open_samples
from infinitevl.training.data.tokens import Limits, TokenWriter
from infinitevl.training.recipes import DataSettings
from infinitevl.training.stages.inputs import Batch


class PackedFeed:
    """Yields rows of packed samples in an order that the seed decides; continues from any step.

    rank, world_size: this process among those that share each step.
    """

    def __init__(
        self,
        settings: DataSettings,
        processor: InfiniteVLProcessor,
        config: InfiniteVLConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.mixture = _mixture(settings, seed)
        self.writer = TokenWriter(processor, config, _limits(settings))
        self.plan = BatchPlan(
            settings.row_tokens, batches_per_step=settings.rows_per_step, max_skipped=settings.max_skipped
        )
        self.place: dict[str, int] = {"rank": rank, "world_size": world_size, "num_workers": settings.workers}
        self._open(None)

    def next_batches(self) -> Sequence[Batch]:
        """Returns this process's rows of the next step."""
        return [loaded.inputs for loaded in next(self._steps)]

    def state_dict(self) -> dict[int, Any]:
        """Returns the position of each of this process's shards."""
        return {shard: dataclasses.asdict(state) for shard, state in self.loader.states.items()}

    def load_state_dict(self, state: dict[int, Any]) -> None:
        """Continues from the positions of all shards."""
        self._open({shard: ShardState(**found) for shard, found in state.items()})

    @property
    def skipped(self) -> dict[str, str]:
        """Bad samples of this process so far: the reason by place."""
        return self.loader.skipped

    def _open(self, states: dict[int, ShardState] | None) -> None:
        self.loader = Loader(self.mixture, self.writer, self.plan, states=states, **self.place)
        self._steps: Iterator[list[LoadedBatch]] = iter(self.loader)


def _mixture(settings: DataSettings, seed: int) -> Mixture:
    if settings.public is not None and settings.mixture is not None:
        return open_mixture(read_public_data(settings.public), settings.mixture, seed)
    sources = [open_samples(source.path, source.form) for source in settings.sources]
    weights = [source.weight or len(opened) for source, opened in zip(settings.sources, sources, strict=True)]
    return Mixture(sources, seed, weights, settings.samples_per_epoch)


def _limits(settings: DataSettings) -> Limits:
    return Limits(
        settings.sample_tokens or settings.row_tokens,
        settings.min_pixels,
        settings.max_pixels,
        settings.fps,
        settings.max_frames,
        settings.max_frame_pixels,
    )
