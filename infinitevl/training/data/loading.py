"""Makes batches within a budget of tokens from samples in order; a run can resume after any of them.

The order is divided over a fixed number of shards. A step takes equally many batches from each, whether one
process reads them or several, with or without workers. So a run may resume with another number of either,
which torchdata's StatefulDataLoader refuses: its state belongs to one process and one number of workers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from infinitevl.errors import InputError
from infinitevl.interrupt import ignore_interrupts
from infinitevl.training.data.mixture import Mixture
from infinitevl.training.data.packing import pack_samples
from infinitevl.training.data.tokens import Tokens, TokenWriter

MOST_SHARDS = 32  # each holds samples in memory from which it fills its next batches
_NAMED = 20  # skipped samples that an error lists


@dataclass(frozen=True)
class BatchPlan:
    """How samples become batches.

    max_tokens: of a batch, which is one packed row. batches_per_step: over all processes. max_skipped: bad
    samples of one process after which the run stops; a row counts once. ahead: how many batches are held as
    samples to choose from; more make fuller batches, but a picture takes 19 KB of memory a token.
    """

    max_tokens: int
    batches_per_step: int = 1
    max_skipped: int = 100
    ahead: float = 2.0

    def num_shards(self, num_samples: int) -> int:
        """Returns the largest divisor of batches_per_step up to MOST_SHARDS and an epoch's samples."""
        most = min(MOST_SHARDS, num_samples, self.batches_per_step)
        return next(count for count in range(most, 0, -1) if self.batches_per_step % count == 0)


@dataclass
class ShardState:
    """The position of a shard: what it reads next in which epoch, samples read and not yet used as (source,
    row), and the bad ones so far as (place, reason). Plain values, ready for JSON."""

    epoch: int = 0
    position: int = 0
    pending: list[tuple[int, int]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class LoadedBatch:
    """Arguments of the model's `forward`, where the samples come from, and the shard's state after them."""

    inputs: dict[str, Any]
    names: list[str]
    shard: int
    state: ShardState


class Shard:
    """Yields batches of every n-th sample, for n shards, without end or until `num_epochs` have passed.

    Raises InputError while iterating once more than max_skipped samples were bad.
    """

    def __init__(
        self,
        mixture: Mixture,
        writer: TokenWriter,
        plan: BatchPlan,
        shard: int = 0,
        state: ShardState | None = None,
        num_epochs: int | None = None,
    ):
        if writer.limits.max_tokens > plan.max_tokens:
            raise InputError(
                f"A sample may have {writer.limits.max_tokens} tokens, a batch {plan.max_tokens}: too few."
            )
        self.mixture, self.writer, self.plan = mixture, writer, plan
        self.shard, self.num_epochs = shard, num_epochs
        self.num_shards = plan.num_shards(mixture.num_samples)
        self.restore(state or ShardState())

    def restore(self, state: ShardState) -> None:
        """Continues from `state`; samples are read only when batches are asked for."""
        self.epoch, self.position, self.skipped = state.epoch, state.position, dict(state.skipped)
        self.pending = [(source, row) for source, row in state.pending]
        self.buffer: list[tuple[tuple[int, int], Tokens]] = []

    def __iter__(self) -> Iterator[LoadedBatch]:
        while self.pending:
            self._read(self.pending.pop(0))
        places = self._places()
        while True:
            while not self._is_full() and (place := next(places, None)) is not None:
                self._read(place)
            if not self.buffer:
                return
            yield self._take()

    def state(self) -> ShardState:
        """Returns the shard's present position."""
        pending = [place for place, _ in self.buffer] + self.pending
        return ShardState(self.epoch, self.position, pending, list(self.skipped.items()))

    def _is_full(self) -> bool:
        return sum(len(tokens) for _, tokens in self.buffer) >= self.plan.ahead * self.plan.max_tokens

    def _places(self) -> Iterator[tuple[int, int]]:
        while self.num_epochs is None or self.epoch < self.num_epochs:
            order = self.mixture.order(self.epoch)[self.shard :: self.num_shards]
            while self.position < len(order):
                source, row = order[self.position].tolist()
                self.position += 1
                yield source, row
            self.epoch, self.position = self.epoch + 1, 0

    def _read(self, place: tuple[int, int]) -> None:
        source, row = self.mixture.sources[place[0]], place[1]
        try:
            self.buffer.append((place, self.writer.write(source[row])))
        except InputError as error:
            self.skipped[source.where(row)] = str(error)
            check_skipped(self.skipped, self.plan.max_skipped)

    def _take(self) -> LoadedBatch:
        chosen = choose_packed([len(tokens) for _, tokens in self.buffer], self.plan.max_tokens)
        taken = [self.buffer[index] for index in chosen]
        self.buffer = [each for index, each in enumerate(self.buffer) if index not in set(chosen)]
        names = [self.mixture.sources[source].where(row) for (source, row), _ in taken]
        return LoadedBatch(pack_samples([tokens for _, tokens in taken]), names, self.shard, self.state())


def choose_packed(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Chooses samples for a row: the oldest, so that none waits for ever, then the longest that still fit."""
    chosen, room = [0], max_tokens - lengths[0]
    for index in sorted(range(1, len(lengths)), key=lambda index: (-lengths[index], index)):
        if lengths[index] <= room:
            chosen.append(index)
            room -= lengths[index]
    return sorted(chosen)


class Loader:
    """Yields steps without end: this process's batches of each, equally many of every shard that it reads.

    Args:
        rank, world_size: this process among those that read together; they divide the shards.
        states: of all shards, merged from `states` of every process, to resume from.
        num_workers: at most so many processes read ahead, as many as divide this process's shards; 0: none.
    """

    def __init__(
        self,
        mixture: Mixture,
        writer: TokenWriter,
        plan: BatchPlan,
        *,
        rank: int = 0,
        world_size: int = 1,
        states: dict[int, ShardState] | None = None,
        num_workers: int = 0,
    ):
        num_shards = plan.num_shards(mixture.num_samples)
        if num_shards % world_size:
            raise InputError(
                f"{mixture.num_samples} samples in {plan.batches_per_step} batches a step are read as "
                f"{num_shards} shards, which {world_size} processes cannot share. Change batches_per_step."
            )
        self.own = list(range(rank, num_shards, world_size))
        self.max_skipped = plan.max_skipped
        self.num_batches = plan.batches_per_step // world_size
        self.states = {shard: (states or {}).get(shard, ShardState()) for shard in self.own}
        self.shards = [Shard(mixture, writer, plan, shard) for shard in self.own]
        self.num_workers = max(
            count for count in range(num_workers + 1) if not count or not len(self.own) % count
        )

    def __iter__(self) -> Iterator[list[LoadedBatch]]:
        for shard in self.shards:
            shard.restore(self.states[shard.shard])
        batches = iter(
            DataLoader(
                _InTurn(self.shards),
                batch_size=None,
                num_workers=self.num_workers,
                worker_init_fn=ignore_interrupts,
            )
        )
        while True:
            step = [next(batches) for _ in range(self.num_batches)]
            self.states.update({batch.shard: batch.state for batch in step})
            check_skipped(self.skipped, self.max_skipped)
            yield step

    @property
    def skipped(self) -> dict[str, str]:
        """The bad samples of this process so far: the reason by place."""
        return {place: reason for state in self.states.values() for place, reason in state.skipped}


class _InTurn(IterableDataset):
    """Yields a batch of each shard in turn; each of n workers takes every n-th shard, in the same order."""

    def __init__(self, shards: Sequence[Shard]):
        self.shards = shards

    def __iter__(self) -> Iterator[LoadedBatch]:
        worker = get_worker_info()
        mine = self.shards if worker is None else self.shards[worker.id :: worker.num_workers]
        streams = [iter(shard) for shard in mine]
        while True:
            for stream in streams:
                yield next(stream)


def check_skipped(skipped: Mapping[str, str], most: int) -> None:
    """Raises InputError that names the bad samples if there are more than `most`."""
    if len(skipped) > most:
        raise InputError(
            f"{len(skipped)} samples were bad, more than {most}. Repair the data, or raise max_skipped.\n"
            f"{describe_skipped(skipped)}"
        )


def describe_skipped(skipped: Mapping[str, str]) -> str:
    """Lists bad samples (the reason by place) as text: how many, then each with its reason."""
    lines = [f"{place}: {reason.removeprefix(place).lstrip(',: ')}" for place, reason in skipped.items()]
    more = [f"... and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "\n".join([f"{len(lines)} bad samples were left out:", *lines[:_NAMED], *more])
