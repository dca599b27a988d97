"""Opens every kind of source of frames; reads folders of pictures and iterables."""

import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.fetching.addresses import local_path, other_than_file, printable
from infinitevl.processing.pictures.opening import ImageSource, open_image
from infinitevl.processing.sources.animation import AnimatedPicture
from infinitevl.processing.sources.cameras import camera_opener, screen_opener, stream_opener
from infinitevl.processing.sources.frames import DEFAULT_FPS, Frame, Sampler, Source
from infinitevl.processing.sources.live import LiveSource, paced
from infinitevl.processing.sources.recording import Recording
from infinitevl.processing.sources.snapshots import DEFAULT_EVERY, SnapshotSource
from infinitevl.processing.sources.video_file import VideoFile

FrameItem: TypeAlias = ImageSource | Frame | tuple[ImageSource, float]

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2",
)  # fmt: skip
RECORDED_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".ogv")
_HTTP = re.compile(r"https?://", re.IGNORECASE)


def open_source(
    source: str | os.PathLike[str] | Iterable[FrameItem],
    *,
    fps: float | None = None,
    live: bool | None = None,
    every: float | None = None,
    allow_private: bool = False,
) -> Source:
    """Opens a file, a folder, a camera, the screen, a network stream or an iterable as a source of frames.

    `source`: a video file (path or file:// address), a folder of pictures, "camera:0" or /dev/video0,
    "screen", an rtsp:// or http(s):// address, or an iterable of frames or (frame, seconds).
    `fps`: at most so many frames a second are kept, each with its own time. Where frames carry no time (a
    folder, an iterable of bare frames) it sets the time between them, 2 a second if not given.
    `live`: None decides by the source: cameras, rtsp:// and http(s):// addresses are live unless the address
    names a recorded file such as .mp4. From a source that is not live no frame is lost; a live one is read
    in a thread, the newest frame wins, and it is opened again when it is lost. A file played with live=True
    comes at its own pace.
    `every`: an http(s):// address is that of one picture, which is fetched again after so many seconds, 1 by
    default where the address ends like a picture's (.jpg, .png, ...); from a private network only with
    `allow_private`.
    Raises InputError for an invalid source, fps or every, SourceError if the source cannot be opened.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise InputError(f"fps is {fps}; give a positive number of frames a second.")
    if every is not None:
        _check_every(every, source)
    if not isinstance(source, str | os.PathLike):
        return _open_iterable(source, fps, bool(live))
    address = os.fspath(source)
    if not address.strip():  # as a path it would be the current folder
        raise InputError("The source has no name. Give a file, a folder, camera:0 or an address.")
    if _is_camera(address):
        return LiveSource(camera_opener(address), address, fps=fps)
    if address == "screen":
        return LiveSource(screen_opener(fps), address, fps=fps)
    if live is not False and (every is not None or _is_picture(address)):
        return SnapshotSource(address, every=every or DEFAULT_EVERY, fps=fps, allow_private=allow_private)
    if re.match(r"(rtsps?|https?|rtmps?|srt|udp|tcp)://", address, re.IGNORECASE):
        return _open_address(address, fps, live)
    path = local_path(address)
    recorded = PictureFolder(path, fps) if os.path.isdir(path) else open_recording(path, fps)
    return _play_live(recorded, str(path)) if live else recorded


def _is_camera(address: str) -> bool:
    if address.startswith("camera:"):
        return True
    try:
        return stat.S_ISCHR(os.stat(address).st_mode)
    except (OSError, ValueError):
        return address.startswith("/dev/video")


def _check_every(every: float, source: Any) -> None:
    if not 0 < every < float("inf"):
        raise InputError(f"every is {every}; give a positive number of seconds.")
    if not isinstance(source, str) or not _HTTP.match(source):
        raise InputError(
            "every (--fetch-every) is for the http(s):// address of a picture; else give fps (--fps)."
        )


def _is_picture(address: str) -> bool:
    """Tells whether an address is that of a single picture; a GIF is taken for a recording."""
    suffix = _suffix(address)
    return _HTTP.match(address) is not None and suffix in PICTURE_SUFFIXES and suffix not in RECORDED_SUFFIXES


def _suffix(address: str) -> str:
    return Path(address.partition("?")[0]).suffix.lower()


def _open_address(address: str, fps: float | None, live: bool | None) -> Source:
    recorded = _HTTP.match(address) is not None and _suffix(address) in RECORDED_SUFFIXES
    if live is None:
        live = not recorded
    if not live:
        return VideoFile(address, fps)
    return LiveSource(stream_opener(address), printable(address), fps=fps)


def _open_iterable(items: Iterable[FrameItem], fps: float | None, live: bool) -> Source:
    if isinstance(items, Source):
        raise InputError("This source is already open: iterate over it.")
    if isinstance(items, bytes) or not hasattr(items, "__iter__"):
        raise InputError(
            f"A {type(items).__name__} is not a source of frames. Give a file, a folder, camera:0, "
            "an rtsp:// or http(s):// address, or an iterable of frames."
        )
    frames = FrameIterator(items, fps)
    return LiveSource(lambda: iter(frames), "the iterator", reconnects=False) if live else frames


def _play_live(recorded: Source, name: str) -> LiveSource:
    return LiveSource(lambda: paced(recorded), name, reconnects=False)


class PictureFolder(Source):
    """Gives the pictures of a folder in natural order (2 before 10), `fps` a second, 2 if None."""

    def __init__(self, path: Path, fps: float | None = None) -> None:
        names = [p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.name[0] != "."]
        if not names:
            raise SourceError(
                f"The folder {path} holds no pictures ({' '.join(PICTURE_SUFFIXES)}). Give another."
            )
        self._paths = sorted(names, key=lambda p: natural_key(p.name))
        self._fps = fps or DEFAULT_FPS
        self._closed = False
        self.num_frames = len(names)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            if self._closed:
                return
            yield Frame(np.asarray(open_image(path)), index / self._fps)

    def close(self) -> None:
        self._closed = True


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Returns a sorting key that reads digits as numbers."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


class FrameIterator(Source):
    """Gives frames, pictures or (picture, seconds) of an iterable; bare pictures at `fps`, 2 if None."""

    def __init__(self, items: Iterable[FrameItem], fps: float | None = None) -> None:
        self._items = iter(items)
        self._fps = fps
        self._closed = False

    def __iter__(self) -> Iterator[Frame]:
        sampler, last = Sampler(self._fps), -math.inf
        for index, item in enumerate(self._items):
            if self._closed:
                return
            picture, time = _split(item)
            if time is None:
                yield Frame(_pixels(picture), index / (self._fps or DEFAULT_FPS))
                continue
            if time < last:
                raise InputError(f"Time goes back: {time} s after {last} s. Give frames in time order.")
            last = time
            if sampler.keeps(time):
                yield Frame(_pixels(picture), time)

    def close(self) -> None:
        self._closed = True
        if hasattr(self._items, "close"):
            self._items.close()


def _split(item: FrameItem) -> tuple[ImageSource, float | None]:
    if isinstance(item, Frame):
        return item.image, item.time
    if not isinstance(item, tuple):
        return item, None
    if len(item) != 2 or isinstance(item[1], bool) or not isinstance(item[1], int | float | np.number):
        raise InputError("A frame in a tuple must be (frame, seconds).")
    return item[0], float(item[1])


def _pixels(picture: ImageSource) -> np.ndarray:
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,):
        return picture
    return np.asarray(open_image(picture))


def open_recording(path: Path | BinaryIO, fps: float | None = None) -> Recording:
    """Opens a recorded file: WebP with Pillow, anything else with FFmpeg. Raises SourceError if it cannot."""
    return AnimatedPicture(path, fps) if _is_webp(_head(path)) else VideoFile(path, fps)


def _head(path: Path | BinaryIO) -> bytes:
    """Returns the first bytes of a file, or none where it cannot be read twice."""
    try:
        if not isinstance(path, Path):
            return path.read(12) if path.seekable() else b""
        if other_than_file(path):
            return b""
        with path.open("rb") as file:
            return file.read(12)
    except (OSError, ValueError):
        return b""  # opening it will raise with the reason
    finally:
        if not isinstance(path, Path) and path.seekable():
            path.seek(0)


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"
