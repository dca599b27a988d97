"""Room for a number of streams in one state: who has which row, and what the host knows about it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infinitevl.errors import StateError
from infinitevl.state import StreamState


@dataclass(frozen=True)
class SpanFacts:
    """What a row's span holds, as the host knows it without asking the device (times in microseconds)."""

    is_open: bool = False
    has_waiting: bool = False
    num_frames: int = 0
    last_time: int = 0

    @classmethod
    def of(cls, state: StreamState) -> "SpanFacts":
        """Read from the state of one stream; waits for the device."""
        span = state.span
        return cls(bool(span.is_open), bool(span.has_waiting), int(span.num_frames), int(span.last_time))


@dataclass(eq=False)
class Slot:
    """A row of the pool that somebody has; `state` is that row alone, as a view."""

    index: int
    state: StreamState
    facts: SpanFacts = SpanFacts()

    def know(self, **changes: bool | int) -> None:
        """Note what a step has changed."""
        self.facts = replace(self.facts, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Parked:
    """A stream in host memory: its row of each buffer."""

    rows: list[Tensor]
    facts: SpanFacts


class Pool:
    """Rows of one state, given out and taken back.

    Args:
        state: of as many streams as there are rows. num_slots: rows that are given out, the first ones.
    """

    def __init__(self, state: StreamState, num_slots: int):
        self.state, self.num_slots = state, num_slots
        self._views = [state.row(index) for index in range(num_slots)]
        self._free = list(reversed(range(num_slots)))
        self._held: set[Slot] = set()

    @property
    def num_free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def holds(self, slot: Slot) -> bool:
        """Whether somebody still has it; its row may be another slot's if not."""
        return slot in self._held

    def take(self) -> Slot:
        """An empty slot.

        Raises:
            StateError: all are taken.
        """
        slot = self._take()
        self.state.reset_row_(slot.index)
        return slot

    def fork(self, slot: Slot) -> Slot:
        """Another slot that holds the same."""
        twin = self._take()
        self.state.copy_row_(twin.index, slot.index)
        twin.facts = slot.facts
        return twin

    def replace_(self, slot: Slot, source: Slot) -> None:
        """Let one slot hold what another does."""
        self.state.copy_row_(slot.index, source.index)
        slot.facts = source.facts

    def release(self, slot: Slot) -> None:
        """Take a slot back."""
        assert slot in self._held, "a slot is released once"
        self._held.remove(slot)
        self._free.append(slot.index)

    def park(self, slot: Slot) -> Parked:
        """A slot's bytes in host memory; the slot is taken back."""
        rows = [_to_host(buffer[slot.index]) for buffer in self.state.buffers]
        self.release(slot)
        return Parked(rows, slot.facts)

    def unpark(self, parked: Parked) -> Slot:
        """A slot that holds what was parked, bit for bit."""
        slot = self._take()
        for buffer, row in zip(self.state.buffers, parked.rows, strict=True):
            buffer[slot.index].copy_(row)
        slot.facts = parked.facts
        return slot

    def _take(self) -> Slot:
        if not self._free:
            raise StateError(
                f"all {self.num_slots} slots of this engine are taken (a stream has one, and a question "
                "while it is answered). Close or park a stream, or build the engine with more num_slots."
            )
        index = self._free.pop()
        slot = Slot(index, self._views[index])
        self._held.add(slot)
        return slot


def _to_host(row: Tensor) -> Tensor:
    if not row.is_cuda:
        return row.clone()
    host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
    return host.copy_(row)
