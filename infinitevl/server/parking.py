"""Where streams lie that have no slot: in host memory up to a limit, beyond it on disk."""

import logging
import shutil
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from infinitevl.engine.slots import Parked
    from infinitevl.server.streams import Stream

logger = logging.getLogger(__name__)
_SHARE = 0.5  # of what is free at the start, where no limit is given
_PAUSE = 10.0  # seconds until a disk that could not be written is tried again
_KEPT_FREE = 2**28  # bytes that parked streams leave of a disk


@dataclass(frozen=True)
class ParkLimits:
    """Bytes that parked streams may take, of host memory and of the disk of a folder."""

    memory: int
    disk: int
    folder: Path

    @classmethod
    def of(cls, memory: int | None, disk: int | None, folder: Path | None) -> "ParkLimits":
        """What was asked for; None stands for half of what is free now, and for the temporary folder."""
        folder = Path(tempfile.gettempdir()) if folder is None else folder
        if memory is None:
            memory = int(psutil.virtual_memory().available * _SHARE)
        if disk is None:
            disk = int(shutil.disk_usage(folder).free * _SHARE)
        return cls(memory, disk, folder)


class Parking:
    """Moves parked streams from memory to disk; part of a worker, and used in its thread.

    Args:
        state_bytes: of one stream.
    """

    def __init__(self, limits: ParkLimits, state_bytes: int) -> None:
        self.limits = limits
        self._in_memory, self._on_disk = limits.memory // state_bytes, limits.disk // state_bytes
        self._state_bytes = state_bytes
        self._writer = ThreadPoolExecutor(1, "parking")
        self._moving: tuple[Parked, Future[None]] | None = None
        self._closed_until = 0.0

    @property
    def is_disk_closed(self) -> bool:
        """Whether the disk could not be written a moment ago."""
        return time.monotonic() < self._closed_until

    def has_room(self, streams: "Collection[Stream]", num_resident: int) -> bool:
        """Whether one more stream fits, when no more than `num_resident` of all have a slot."""
        if psutil.virtual_memory().available < 2 * self._state_bytes:
            return False
        on_disk = _num_on_disk(streams) if self.is_disk_closed else self._on_disk
        return len(streams) + 1 - num_resident <= self._in_memory + on_disk

    def settle(self, streams: "Collection[Stream]", leaving: "Collection[Stream]" = ()) -> None:
        """Let no more lie in memory than its limit, and one that is on its way.

        Whoever was not used for longest goes. This waits for a disk that is slower than streams are parked. A
        disk that cannot be written loses nothing: streams stay in memory, and it is tried again later.

        Args:
            leaving: streams that get a slot now.
        """
        self._collect(wait=False)
        here = [stream for stream in streams if stream not in leaving and self._is_in_memory(stream)]
        here.sort(key=lambda stream: stream.used)
        free = self._on_disk - _num_on_disk(streams) - (self._moving is not None)
        for stream in here[: max(0, min(len(here) - self._in_memory, free))]:
            self._collect(wait=True)
            if self.is_disk_closed:
                return
            parked = stream.session.parked
            assert parked is not None
            self._moving = parked, self._writer.submit(self._move, parked)

    def stop(self) -> None:
        """Wait for what is on its way."""
        self._writer.shutdown()

    def _is_in_memory(self, stream: "Stream") -> bool:
        parked = stream.session.parked
        is_moving = self._moving is not None and self._moving[0] is parked
        return parked is not None and not parked.is_on_disk and not is_moving

    def _collect(self, wait: bool) -> None:
        """Note what became of the one on its way."""
        if self._moving is None or not (wait or self._moving[1].done()):
            return
        error, self._moving = self._moving[1].exception(), None
        if error is not None:
            logger.error(
                "no stream can be parked in %s, and all stay in memory: %s", self.limits.folder, error
            )
            self._closed_until = time.monotonic() + _PAUSE

    def _move(self, parked: "Parked") -> None:
        left = shutil.disk_usage(self.limits.folder).free - self._state_bytes
        if left < _KEPT_FREE:
            raise OSError(
                f"its disk would have {left} bytes left, and {_KEPT_FREE} stay free for other things"
            )
        parked.move_to_disk(self.limits.folder)


def _num_on_disk(streams: "Collection[Stream]") -> int:
    return sum(is_on_disk(stream) for stream in streams)


def is_on_disk(stream: "Stream") -> bool:
    """Whether a stream is parked on disk."""
    parked = stream.session.parked
    return parked is not None and parked.is_on_disk
