"""Moving pictures that FFmpeg cannot read and Pillow can: animated WebP."""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageSequence

from infinitevl.errors import SourceError
from infinitevl.processing.addresses import other_than_file, read_file
from infinitevl.processing.decode import VideoFile
from infinitevl.processing.images import open_image
from infinitevl.processing.pixels import MAX_PIXELS
from infinitevl.processing.recording import Moment, Recording, Shown

_UNKNOWN_DURATION = 0.1  # seconds, as browsers take it


def open_recording(path: Path | BinaryIO, fps: float | None = None) -> Recording:
    """A recorded file, opened by FFmpeg or else by Pillow; SourceError if neither can read it."""
    return AnimatedPicture(path, fps) if _is_webp(_head(path)) else VideoFile(path, fps)


def _head(path: Path | BinaryIO) -> bytes:
    try:
        if not isinstance(path, Path):
            return path.read(12) if path.seekable() else b""
        if other_than_file(path):
            return b""
        with path.open("rb") as file:
            return file.read(12)
    except (OSError, ValueError):
        return b""  # whoever opens it says why
    finally:
        if not isinstance(path, Path) and path.seekable():
            path.seek(0)


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


class AnimatedPicture(Recording):
    """The frames of an animated picture, with the times that it states."""

    def __init__(self, path: str | os.PathLike[str] | BinaryIO, fps: float | None = None) -> None:
        super().__init__(os.fspath(path) if isinstance(path, str | os.PathLike) else "The video", fps)
        data = read_file(Path(path)) if isinstance(path, str | os.PathLike) else path.read()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked here
                self._image = Image.open(io.BytesIO(data))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise SourceError(f"{self._name} cannot be read: {error}.") from error
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            raise SourceError(f"{self._name} has {width}x{height} pixels a frame, more than {MAX_PIXELS}.")
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
        """The time and the duration of each frame, while the picture is at it."""
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
