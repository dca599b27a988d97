"""Defines a frame, and what every source of frames offers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

DEFAULT_FPS = 2.0
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture with a time.

    image: uint8 [height, width, 3] in RGB. time: seconds, as a rule since the first frame. dropped: how many
    frames a live source dropped between the one before and this one.
    """

    image: np.ndarray
    time: float
    dropped: int = 0


class Source(ABC):
    """Frames in time order: iterate once, then close (or use it as a context manager).

    live: whether frames that nobody takes in time are dropped, which `dropped` counts.
    size: (height, width) in pixels, num_frames: how many will come; None where unknown in advance.
    """

    live: bool = False
    dropped: int = 0
    size: tuple[int, int] | None = None
    num_frames: int | None = None

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames, in time order."""

    @abstractmethod
    def close(self) -> None:
        """Releases what the source holds; iterating ends. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sampler:
    """Keeps the first frame of every 1/fps seconds, with its own time; all frames where fps is None."""

    def __init__(self, fps: float | None) -> None:
        self._fps = fps
        self._next_tick = 0

    def keeps(self, time: float) -> bool:
        """Tells whether the frame at `time` seconds is the first one at or after the next tick."""
        if self._fps is None:
            return True
        tick = math.floor(time * self._fps + _ROUNDING)
        if tick < self._next_tick:
            return False
        self._next_tick = tick + 1
        return True
