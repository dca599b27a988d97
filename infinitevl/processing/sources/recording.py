"""Defines recorded sources: the times of all frames, and the frames at chosen times."""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from infinitevl.errors import SourceError
from infinitevl.processing.fetching.addresses import printable
from infinitevl.processing.sources.frames import Frame, Sampler, Source

Moment = tuple[float, Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Shown:
    """The times at which a recording shows its frames.

    times: rising seconds since the first frame, one for each. duration: until the last one is gone.
    fps: frames a second as the file states them, which may be wrong.
    """

    times: list[float]
    duration: float
    fps: float


class Recording(Source):
    """A source that ends and loses no frame: gives every frame, or `fps` of them a second."""

    def __init__(self, path: str | os.PathLike[str] | BinaryIO, fps: float | None) -> None:
        self._name = printable(os.fspath(path)) if isinstance(path, str | os.PathLike) else "The video"
        self._sampler = Sampler(fps)
        self._closed = False
        self.problem: str | None = None

    @abstractmethod
    def shown(self) -> Shown:
        """Returns when the frames are shown; the recording cannot be iterated afterwards."""

    @abstractmethod
    def _moments(self) -> Iterator[Moment]:
        """Yields the time of each frame, in order, and a function that returns its pixels."""

    def __iter__(self) -> Iterator[Frame]:
        for time, pixels in self._moments():
            if self._sampler.keeps(time):
                yield Frame(pixels(), time)

    def frames_at(self, times: Sequence[float], tolerance: float) -> Iterator[np.ndarray]:
        """Yields the frames at rising times out of `shown`; the one before for one that cannot be read.

        Only these are converted. Raises SourceError if no frame can be read at all.
        """
        wanted = list(reversed(times))
        last: Callable[[], np.ndarray] | None = None
        for time, pixels in self._moments():
            while wanted and wanted[-1] <= time + tolerance:
                is_late = last is not None and wanted[-1] < time - tolerance
                yield last() if is_late and last is not None else pixels()
                wanted.pop()
            last = pixels
            if not wanted:
                return
        if last is None:
            raise SourceError(f"{self._name} holds no frame that can be read. Is it a whole video?")
        while wanted:
            wanted.pop()
            yield last()

    def close(self) -> None:
        self._closed = True


class Timeline:
    """Turns time stamps that may be missing, go back or restart into seconds since the first frame.

    A clock that goes back by more than two frames has restarted, as where two recordings were joined; one
    that leaps ahead by more than `largest_gap` seconds has too. Times then run on from the frame before.
    """

    def __init__(self, spacing: float, largest_gap: float = float("inf")) -> None:
        self._spacing, self._jitter = spacing, 2 * spacing
        self._largest_gap = largest_gap
        self._zero: float | None = None
        self._time = 0.0
        self.count = 0
        self.end = 0.0

    def place(self, stamp: float | None, duration: float | None = None) -> float:
        """Returns the time of the next frame; it lasts for `duration`, and until `end` if none follows."""
        if self._zero is None:
            self._zero = stamp or 0.0
        time = self.end if stamp is None else stamp - self._zero
        if stamp is not None and self._starts_anew(time):
            self._zero += time - self.end
            time = self.end
        time = max(time, self._time)
        if self.count and time > self._time:
            self._spacing = time - self._time
        self._time = time
        self.count += 1
        self.end = time + (duration or self._spacing)
        return time

    def _starts_anew(self, time: float) -> bool:
        return time < self._time - self._jitter or time > self.end + self._largest_gap
