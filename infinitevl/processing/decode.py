"""The only door to PyAV: containers with the package's own errors, and recorded videos."""

import logging
import os
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

from infinitevl.errors import SourceError
from infinitevl.processing.addresses import other_than_file, printable
from infinitevl.processing.pixels import MAX_PIXELS
from infinitevl.processing.recording import Moment, Recording, Shown, Timeline
from infinitevl.processing.render import pixel_aspect, shown_size, to_rgb
from infinitevl.processing.wholeness import is_cut, lists_every_packet

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

OPEN_TIMEOUT = 10.0
READ_TIMEOUT = 5.0
_HALF = 0.5
_UNKNOWN_RATE = 25.0
_FASTEST_RATE = 480.0  # a header that says more names the unit of its clock
_CLOCK_MAY_LEAP = 0x0200  # AVFMT_TS_DISCONT of FFmpeg: MPEG-TS and its like
_LEAP = 10.0  # seconds: as FFmpeg's own tool
_LARGE = 1 << 25  # pixels: such frames take so much memory that they are decoded one after the other

logger = logging.getLogger(__name__)


class VideoFile(Recording):
    """Every frame of a recorded video (or `fps` of them a second), with its real time since the first.

    A damaged file gives all frames that can be read. Then, if these are less than half of it, iterating
    raises SourceError with their number; otherwise a warning is logged and `problem` says what is missing.
    """

    def __init__(self, path: str | os.PathLike[str] | BinaryIO, fps: float | None = None) -> None:
        super().__init__(
            printable(os.fspath(path)) if isinstance(path, str | os.PathLike) else "The video", fps
        )
        self._path = path
        self._container = open_container(path)
        self._stream = video_stream(self._container, self._name)
        self._aspect = pixel_aspect(self._stream)
        if self._stream.width * self._stream.height <= _LARGE:
            self._stream.thread_type = "AUTO"
        self._states_pts = self._container.format.name != "avi"
        self._num_packets, self._reached = 0, 0.0
        self._size: tuple[int, int] | None = None
        self._decoded: Iterator[VideoFrame | None] = self._decode()
        self.fps = _believable(self._stream.average_rate)
        self.duration = _duration(self._container, self._stream)
        self.num_frames = self._expected_frames(fps)

    @property
    def size(self) -> tuple[int, int] | None:  # type: ignore[override]
        """(height, width) of the frames as they come; the first is decoded to know how it is turned."""
        if self._size is None and not self._closed:
            before: list[VideoFrame | None] = []
            for decoded in self._decoded:
                before.append(decoded)
                if decoded is not None:
                    self._size = shown_size(decoded, self._aspect)
                    break
            self._decoded = chain(before, self._decoded)
        return self._size

    def _expected_frames(self, fps: float | None) -> int | None:
        if fps is None and self._stream.frames:
            if lists_every_packet(self._container, self._stream):  # those too that an edit list hides
                return max(1, sum(not entry.is_discard for entry in self._stream.index_entries))
            return self._stream.frames
        return max(1, round(self.duration * (fps or self.fps))) if self.duration else None

    def shown(self) -> Shown:
        timeline, times = self._timeline(), []
        for stamp, duration in self._stamps():
            times.append(timeline.place(stamp, duration))
        return Shown(times, timeline.end, self.fps)

    def _stamps(self) -> Iterator[tuple[float | None, float | None]]:
        """Time stamp and duration of each frame that will be shown, in order, found without decoding.

        Packets come in the order in which they are decoded; they are sorted up to where the clock restarts.
        """
        run: list[tuple[float | None, float | None]] = []
        latest = -float("inf")
        for packet in self._video_packets():
            if not packet.size or packet.is_discard:
                continue
            clock = latest if packet.dts is None else float(packet.dts * packet.time_base)
            if clock < latest - 2 / self.fps or clock > latest + self._largest_gap:
                yield from _in_order(run)
                run = []
            latest = clock
            run.append((self._stamp(packet), _seconds_of(packet)))
        yield from _in_order(run)

    def _stamp(self, timed: "Packet | VideoFrame") -> float | None:
        """When a packet or frame is shown; AVI states the order of decoding alone, which is as good."""
        stamp = timed.pts if self._states_pts and timed.pts is not None else timed.dts
        return None if stamp is None or not timed.time_base else float(stamp * timed.time_base)

    def _video_packets(self) -> "Iterator[Packet]":
        """The packets of the video; those of the others only say how far the file could be read."""
        import av

        packets = self._container.demux()
        while not self._closed:
            try:
                packet = next(packets)
            except (StopIteration, av.error.InvalidDataError):
                return  # a file cut short: what came before it counts
            except av.error.FFmpegError as error:
                raise SourceError(f"{self._name} broke while it was read: {error}.") from error
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                end = float((stamp + (packet.duration or 0)) * packet.time_base)
                self._reached = max(self._reached, end)
            if packet.stream.index == self._stream.index:
                self._num_packets += packet.size > 0
                yield packet

    def _moments(self) -> Iterator[Moment]:
        timeline = self._timeline()
        broken = 0
        for decoded in self._decoded:
            if decoded is None:
                broken += 1
                continue
            time = timeline.place(self._stamp(decoded), _seconds_of(decoded))
            yield time, partial(to_rgb, decoded, self._aspect)
            if self._closed:
                return
        if not self._closed:
            self._report(timeline, broken)

    @property
    def _largest_gap(self) -> float:
        return _LEAP if self._container.format.flags & _CLOCK_MAY_LEAP else float("inf")

    def _timeline(self) -> Timeline:
        return Timeline(1 / self.fps, self._largest_gap)

    def _decode(self) -> "Iterator[VideoFrame | None]":
        """Decoded frames; None stands for a packet that cannot be decoded."""
        import av

        for packet in self._video_packets():
            try:
                for decoded in packet.decode():
                    yield decoded
                    if self._closed:
                        return
            except av.error.InvalidDataError:
                yield None
            except av.error.FFmpegError as error:
                raise self._too_large_or_broken(error) from error

    def _too_large_or_broken(self, error: Exception) -> SourceError:
        width, height = self._stream.codec_context.width, self._stream.codec_context.height
        if width * height > MAX_PIXELS:
            return _too_large(self._name, width, height)
        return SourceError(f"{self._name} broke while it was read: {error}.")

    def _report(self, timeline: Timeline, broken: int) -> None:
        if timeline.count == 0:
            raise SourceError(f"{self._name} holds no frame that can be read. Is it a whole video?")
        reached = self._reached - max(self._container.start_time or 0, 0) / 1_000_000
        cut = is_cut(self._path, self._container, self._stream, self._num_packets, reached)
        if not broken and not cut:
            return
        of = f" of {self.duration:.1f}" if self.duration else ""
        self.problem = (
            f"{self._name} is damaged: {timeline.count} frames could be read, {timeline.end:.1f}{of} seconds."
        )
        share = timeline.count / (timeline.count + broken)
        if cut and self.duration:
            share = min(share, max(timeline.end, reached) / self.duration)
        if share < _HALF:
            raise SourceError(f"{self.problem} Get a whole copy.")
        logger.warning(self.problem)

    def close(self) -> None:
        super().close()
        self._container.close()


def _in_order(
    run: list[tuple[float | None, float | None]],
) -> list[tuple[float | None, float | None]]:
    """Stamps in the order in which their frames are shown; as they are if some are missing."""
    if any(stamp is None for stamp, _ in run):
        return run
    return sorted(run, key=lambda each: each[0] or 0.0)


def _seconds_of(timed: "Packet | VideoFrame") -> float | None:
    """How long a packet or frame is shown, if it says so."""
    if not timed.duration or not timed.time_base:
        return None
    return float(timed.duration * timed.time_base)


def _believable(rate: object) -> float:
    """Frames a second as a header states them, unless nobody can mean that."""
    stated = float(rate or 0)  # type: ignore[arg-type]
    return stated if 0 < stated <= _FASTEST_RATE else _UNKNOWN_RATE


def open_container(
    source: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
    options: dict[str, str] | None = None,
) -> "InputContainer":
    """A file, device (with its `format`) or address opened for reading; SourceError with the reason if not.

    A path is a file, whatever its name looks like. What is read from a file or from bytes cannot make FFmpeg
    open network addresses, and no frame with too many pixels is decoded.
    """
    import av

    options = {"max_pixels": _decoder_limit(), **(options or {})}
    opened: str | BinaryIO
    if isinstance(source, str | os.PathLike):
        opened = os.fspath(source)
        if format is None and not _is_address(source):
            _check_file(opened)
            opened = f"file:{opened}"
            options["protocol_whitelist"] = "file,crypto,data"
    else:
        opened = source
        options["protocol_whitelist"] = "data"
    try:
        return av.open(opened, "r", format=format, options=options, timeout=(OPEN_TIMEOUT, READ_TIMEOUT))
    except (av.error.FFmpegError, ValueError) as error:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)).replace("'file:", "'")
        if format is not None or (isinstance(opened, str) and _is_address(opened)):
            reason = reason.replace(f": '{opened}'", "")
            raise SourceError(f"{opened} cannot be opened: {printable(reason)}.") from error
        raise SourceError(
            f"No video can be opened: {printable(reason)}. Give a video file, a folder of pictures, "
            "camera:0, or an rtsp:// or http(s):// address."
        ) from error


def _is_address(source: str | os.PathLike[str]) -> bool:
    """Whether a text (a path object never) names a protocol."""
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE) is not None


def _check_file(name: str) -> None:
    if kind := other_than_file(name):
        raise SourceError(
            f"{name} is {kind}, not a video file. Give a file, camera:0, an address, or an iterable."
        )
    if os.path.isfile(name) and os.path.getsize(name) == 0:
        raise SourceError(f"{name} is an empty file. Get a whole copy.")


def video_stream(container: "InputContainer", name: str) -> "VideoStream":
    """The first video stream that can be decoded; SourceError, and the container closed, if there is none."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if stream.codec_context is None or stream.disposition & Disposition.attached_pic:
            continue
        context = stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            container.close()
            raise _too_large(name, context.width, context.height)
        context.options = {"max_pixels": _decoder_limit()}
        return stream
    kinds = ", ".join(_kind(stream) for stream in container.streams)
    container.close()
    raise SourceError(f"{name} holds no video that can be decoded, only: {kinds or 'nothing'}.")


def _kind(stream: object) -> str:
    from av.stream import Disposition

    is_cover = stream.disposition & Disposition.attached_pic  # type: ignore[attr-defined]
    kind: str = stream.type  # type: ignore[attr-defined]
    return "a cover picture" if is_cover else "audio (sound)" if kind == "audio" else kind


def _decoder_limit() -> str:
    """The limit for FFmpeg's own check, which counts the margins of its buffers too."""
    return str(MAX_PIXELS * 5 // 4 + 65536)


def _too_large(name: str, width: int, height: int) -> SourceError:
    return SourceError(
        f"{name} has {width}x{height} pixels a frame, more than {MAX_PIXELS}. Make the video smaller."
    )


def _duration(container: "InputContainer", stream: "VideoStream") -> float | None:
    """Length in seconds as the file states it, from its first frame on."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    # Matroska counts from zero, even if nothing is shown at first.
    return (container.duration - max(container.start_time or 0, 0)) / 1_000_000
