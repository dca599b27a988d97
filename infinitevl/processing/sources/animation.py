"""Reads animated WebP pictures, which Pillow can decode and FFmpeg cannot."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageSequence

from infinitevl.errors import SourceError
from infinitevl.processing.fetching.addresses import read_file
from infinitevl.processing.pictures.opening import open_image, read_header
from infinitevl.processing.sources.container import check_frame_size
from infinitevl.processing.sources.recording import Moment, Recording, Shown

_UNKNOWN_DURATION = 0.1  # seconds, as browsers take it


class AnimatedPicture(Recording):
    """Gives the frames of an animated picture, with the times that it states."""

    def __init__(self, path: str | os.PathLike[str] | BinaryIO, fps: float | None = None) -> None:
        super().__init__(path, fps)
        data = read_file(Path(path)) if isinstance(path, str | os.PathLike) else path.read()
        try:
            self._image = read_header(data)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise SourceError(f"{self._name} cannot be read: {error}.") from error
        width, height = self._image.size
        check_frame_size(self._name, width, height)
        self.size = (height, width)
        frames = getattr(self._image, "n_frames", 1)
        self.num_frames = frames if fps is None else None

    def shown(self) -> Shown:
        times, end = [], 0.0
        for time, last in self._timed():
            times.append(time)
            end = time + last
        return Shown(times, end, len(times) / end)

    def _moments(self) -> Iterator[Moment]:
        for time, _ in self._timed():
            yield time, self._pixels()

    def _pixels(self) -> Callable[[], np.ndarray]:
        frame = self._image.copy()
        return lambda: np.array(open_image(frame))

    def _timed(self) -> Iterator[tuple[float, float]]:
        """Yields the time and duration of each frame, in seconds, while that frame is loaded."""
        time = 0.0
        try:
            for _ in ImageSequence.Iterator(self._image):
                if self._closed:
                    return
                self._image.load()
                duration = (self._image.info.get("duration") or 0) / 1000 or _UNKNOWN_DURATION
                yield time, duration
                time += duration
        except (OSError, ValueError, EOFError) as error:
            self.problem = f"{self._name} is damaged: {time:.1f} seconds could be read. Get a whole copy."
            raise SourceError(self.problem) from error
