"""Slots: rows of one state that streams and answers occupy, each with facts that the host keeps."""

import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from infinitevl.errors import StateError
from infinitevl.state import SpanState, StreamState

_ON_DEVICE = ("is_open", "has_waiting", "num_frames", "last_time")


@dataclass(frozen=True)
class Facts:
    """The host's copy of what a slot holds, which needs no wait for the device.

    A change computes the facts that will hold after it. The step that makes the change writes them into the
    row (`write_facts`), and the host keeps the same object.

    num_tokens: read so far. is_open: the vision span. has_waiting: a frame waits for its partner.
    num_frames: seen, a waiting one included. last_time: of the newest, microseconds. num_dropped: frames that
    live sources dropped; written to the row only when it is saved.
    """

    num_tokens: int = 0
    is_open: bool = False
    has_waiting: bool = False
    num_frames: int = 0
    last_time: int = 0
    num_dropped: int = 0

    @classmethod
    def of(cls, state: StreamState) -> "Facts":
        """Read the facts from the state of one stream; waits for the device."""
        span = state.span
        return cls(
            int(state.length),
            bool(span.is_open),
            bool(span.has_waiting),
            int(span.num_frames),
            int(span.last_time),
            int(span.num_dropped),
        )

    def with_text(self, num_tokens: int) -> "Facts":
        """Return the facts after `num_tokens` more tokens."""
        return replace(self, num_tokens=self.num_tokens + num_tokens)

    def with_frame(self, time: int, num_dropped: int) -> "Facts":
        """Return the facts after a frame at `time`, before which the source dropped `num_dropped`."""
        dropped, frames = self.num_dropped + num_dropped, self.num_frames + 1
        return replace(self, num_frames=frames, last_time=time, num_dropped=dropped)

    def with_patch(self, num_tokens: int) -> "Facts":
        """Return the facts after the tokens of a complete temporal patch in an open span."""
        return replace(self.with_text(num_tokens), is_open=True, has_waiting=False)

    def row(self) -> list[int]:
        """Return the numbers that `write_facts` writes."""
        return [int(getattr(self, name)) for name in _ON_DEVICE]


def write_facts(span: SpanState, rows: Tensor | None, facts: Tensor) -> None:
    """Write `Facts.row` of each stream (int64 [B, 4]) into rows (int64 [B], None for all) of a state."""
    for name, values in zip(_ON_DEVICE, facts.unbind(1), strict=True):
        put(getattr(span, name), rows, values)


def put(field: Tensor, rows: Tensor | None, values: Tensor) -> None:
    """Write values [B, ...] into rows of a field of the state."""
    values = values.to(field.dtype)
    if rows is None:
        field.copy_(values)
    else:
        field.index_copy_(0, rows, values)


@dataclass(eq=False)
class Slot:
    """A row in use; `state` is a view of that row alone."""

    index: int
    state: StreamState
    facts: Facts = Facts()


@dataclass(eq=False)
class Parked:
    """A stream without a slot: its row of each buffer, in host memory or on disk."""

    rows: list[Tensor]
    facts: Facts
    is_on_disk: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return sum(row.nbytes for row in self.rows)

    def move_to_disk(self, folder: Path) -> None:
        """Move the rows to files of `folder`; in any thread, also while they are read.

        The files have no names: nothing of them is left after the process, however it ends.

        Raises:
            OSError: the disk is full, or the folder cannot be written; the rows stay where they are.
        """
        self.rows, self.is_on_disk = [_mapped(row, folder) for row in self.rows], True


class SlotPool:
    """Manages the rows of one state as slots.

    A row is taken as long as its `Slot` object lives and is not released. So an interrupted call cannot keep
    a row: its slot object dies with it.

    Args:
        state: its rows. num_slots: how many of them, the first ones, are slots.
    """

    def __init__(self, state: StreamState, num_slots: int):
        self.state, self.num_slots = state, num_slots
        self._views = [state.row(index) for index in range(num_slots)]
        self._taken: dict[int, weakref.ref[Slot]] = {}

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return sum(self._is_free(index) for index in range(self.num_slots))

    def holds(self, slot: Slot) -> bool:
        """Whether `slot` is still valid; if not, its row may belong to another slot."""
        taken = self._taken.get(slot.index)
        return taken is not None and taken() is slot

    def take(self) -> Slot:
        """Take an empty slot.

        Raises:
            StateError: all are taken.
        """
        slot = self._take()
        self.state.reset_row_(slot.index)
        return slot

    def fork(self, slot: Slot) -> Slot:
        """Copy a slot into another one."""
        twin = self._take()
        self.state.copy_row_(twin.index, slot.index)
        twin.facts = slot.facts
        return twin

    def release(self, slot: Slot) -> None:
        """Free a slot."""
        if self.holds(slot):
            del self._taken[slot.index]

    def park(self, slot: Slot) -> Parked:
        """Copy a slot to host memory."""
        return Parked([_to_host(buffer[slot.index]) for buffer in self.state.buffers], slot.facts)

    def unpark(self, parked: Parked) -> Slot:
        """Take a slot and fill it with what was parked, bit for bit."""
        slot = self._take()
        self.restore_(slot, parked.rows)
        slot.facts = parked.facts
        return slot

    def rows(self, slots: Sequence[Slot]) -> list[list[Tensor]]:
        """Copy slots on their devices, for `restore_`."""
        return [[buffer[slot.index].clone() for buffer in self.state.buffers] for slot in slots]

    def restore_(self, slot: Slot, row: Sequence[Tensor]) -> None:
        """Write a copied row back."""
        for buffer, kept in zip(self.state.buffers, row, strict=True):
            buffer[slot.index].copy_(kept)

    def _is_free(self, index: int) -> bool:
        taken = self._taken.get(index)
        return taken is None or taken() is None

    def _take(self) -> Slot:
        index = next((index for index in range(self.num_slots) if self._is_free(index)), None)
        if index is None:
            raise StateError(
                f"all {self.num_slots} slots of this engine are taken (a stream has one, and a question "
                "while it is answered). Close or park a stream, or build the engine with more num_slots."
            )
        slot = Slot(index, self._views[index])
        self._taken[index] = weakref.ref(slot)
        return slot


def _mapped(row: Tensor, folder: Path) -> Tensor:
    """The same bytes, read from a file when they are looked at."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(row.numpy().data)
        file.flush()
        os.fsync(file.fileno())  # a disk that is full says so now; and written pages can leave memory
        return torch.frombuffer(
            mmap.mmap(file.fileno(), row.nbytes, access=mmap.ACCESS_COPY), dtype=row.dtype
        )


def _to_host(row: Tensor) -> Tensor:
    if not row.is_cuda:
        return row.clone()
    host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
    return host.copy_(row)
