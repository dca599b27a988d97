"""The only door to PyAV: containers opened with the package's own errors, and decoded frames as RGB."""

import logging
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from infinitevl.errors import SourceError
from infinitevl.processing.frames import Frame, Sampler, Source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

OPEN_TIMEOUT = 10.0
READ_TIMEOUT = 5.0
_NEARLY_WHOLE = 0.9
_HALF = 0.5
_UNKNOWN_RATE = 25

logger = logging.getLogger(__name__)


class VideoFile(Source):
    """Every frame of a recorded video (or `fps` of them a second), with its real time since the first.

    A damaged file gives all frames that can be read. Then, if these cover less than half of it, iterating
    raises SourceError with their number; otherwise a warning is logged and `problem` says what is missing.
    """

    def __init__(self, path: str | os.PathLike[str] | BinaryIO, fps: float | None = None) -> None:
        self._name = os.fspath(path) if isinstance(path, str | os.PathLike) else "The video"
        self._sampler = Sampler(fps)
        self._closed = False
        self.problem: str | None = None
        self._container = open_container(path)
        self._stream = video_stream(self._container, self._name)
        self._stream.thread_type = "AUTO"
        self.size = (self._stream.height, self._stream.width) if self._stream.width else None
        self.fps = float(self._stream.average_rate or _UNKNOWN_RATE)
        self.duration = _duration(self._container, self._stream)
        self.num_frames = self._expected_frames(fps)

    def _expected_frames(self, fps: float | None) -> int | None:
        if fps is None and self._stream.frames:
            return self._stream.frames
        return max(1, round(self.duration * (fps or self.fps))) if self.duration else None

    def count_packets(self) -> int:
        """How many frames are in the file, found without decoding: it cannot be iterated afterwards."""
        import av

        count = 0
        try:
            for packet in self._container.demux(self._stream):
                count += packet.size > 0
        except av.error.InvalidDataError:
            pass  # a file cut short: what came before it counts
        return count

    def __iter__(self) -> Iterator[Frame]:
        timeline = _Timeline(1 / self.fps)
        broken = 0
        for decoded in self._decode():
            if decoded is None:
                broken += 1
            elif self._sampler.keeps(time := timeline.place(decoded.time)):
                yield Frame(to_rgb(decoded), time)
        if not self._closed:
            self._report(timeline, broken)

    def _decode(self) -> "Iterator[VideoFrame | None]":
        """Decoded frames; None stands for a packet that cannot be decoded or an end that came too early."""
        import av

        packets = self._container.demux(self._stream)
        while not self._closed:
            try:
                for decoded in next(packets).decode():
                    yield decoded
                    if self._closed:
                        return
            except StopIteration:
                return
            except av.error.InvalidDataError:
                yield None
            except av.error.FFmpegError as error:
                raise SourceError(f"{self._name} broke while it was read: {error}.") from error

    def _report(self, timeline: "_Timeline", broken: int) -> None:
        if timeline.count == 0:
            raise SourceError(f"{self._name} holds no frame that can be read. Is it a whole video?")
        share = timeline.end / self.duration if self.duration else 1.0
        if share >= _NEARLY_WHOLE and not broken:
            return
        of = f" of {self.duration:.1f}" if self.duration else ""
        self.problem = (
            f"{self._name} is damaged: {timeline.count} frames could be read, {timeline.end:.1f}{of} seconds."
        )
        if share < _HALF:
            raise SourceError(f"{self.problem} Get a whole copy.")
        logger.warning(self.problem)

    def close(self) -> None:
        self._closed = True
        self._container.close()


class _Timeline:
    """Times from the first frame on, from stamps that may be missing or go back."""

    def __init__(self, spacing: float) -> None:
        self._spacing = spacing
        self._zero: float | None = None
        self.count = 0
        self.end = 0.0

    def place(self, stamp: float | None) -> float:
        """The time of the next frame, which lasts until `end` if none follows."""
        if self._zero is None:
            self._zero = stamp or 0.0
        latest = max(0.0, self.end - self._spacing)
        time = self.end if stamp is None else max(stamp - self._zero, latest)
        self.count += 1
        self.end = time + self._spacing
        return time


def open_container(
    source: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
    options: dict[str, str] | None = None,
) -> "InputContainer":
    """A file, device or address opened for reading; SourceError with the reason if that fails.

    What is read from a file or from bytes cannot make FFmpeg open network addresses.
    """
    import av

    name = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if name is None or "://" not in name:
        options = {"protocol_whitelist": "file,crypto,data", **(options or {})}
    if name is not None and os.path.isfile(name) and os.path.getsize(name) == 0:
        raise SourceError(f"{name} is an empty file. Get a whole copy.")
    try:
        opened = source if name is None else name
        return av.open(opened, "r", format=format, options=options, timeout=(OPEN_TIMEOUT, READ_TIMEOUT))
    except (av.error.FFmpegError, ValueError) as error:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
        raise SourceError(
            f"No video can be opened: {reason}. Give a video file, a folder of pictures, camera:0, "
            "or an rtsp:// or http(s):// address."
        ) from error


def video_stream(container: "InputContainer", name: str) -> "VideoStream":
    """The first video stream that can be decoded; SourceError, and the container closed, if there is none."""
    for stream in container.streams.video:
        if stream.codec_context is not None:
            return stream
    kinds = ", ".join(stream.type for stream in container.streams)
    container.close()
    raise SourceError(f"{name} holds no video that can be decoded, only: {kinds or 'nothing'}.")


def _duration(container: "InputContainer", stream: "VideoStream") -> float | None:
    """Length in seconds as the file states it, from its first frame on."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    # Matroska counts from zero, even if nothing is shown at first.
    return (container.duration - max(container.start_time or 0, 0)) / 1_000_000


def to_rgb(decoded: "VideoFrame") -> np.ndarray:
    """A decoded frame as uint8 [height, width, 3], turned as its display matrix says."""
    pixels = decoded.to_ndarray(format="rgb24")
    quarter_turns = round(decoded.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels
