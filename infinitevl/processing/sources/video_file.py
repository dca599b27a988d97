"""Reads recorded video files, damaged ones as far as they go."""

import logging
import os
import threading
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

from infinitevl.errors import SourceError
from infinitevl.processing.sources.container import (
    check_frame_size,
    is_cut,
    lists_every_packet,
    open_container,
    video_stream,
)
from infinitevl.processing.sources.recording import Moment, Recording, Shown, Timeline
from infinitevl.processing.sources.rgb import pixel_aspect, shown_size, to_rgb

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_HALF = 0.5
_UNKNOWN_RATE = 25.0
_FASTEST_RATE = 480.0  # headers that state more mean the unit of their clock
_CLOCK_MAY_LEAP = 0x0200  # AVFMT_TS_DISCONT of FFmpeg: MPEG-TS and its like
_LEAP = 10.0  # seconds, as in the ffmpeg command
_LARGE = 1 << 25  # pixels; larger frames are decoded by one thread, to save memory

logger = logging.getLogger(__name__)


class VideoFile(Recording):
    """Gives every frame of a recorded video, or `fps` of them a second, with its time since the first.

    A damaged file gives all frames that can be read. Then, if these are less than half of it, iterating
    raises SourceError with their number; otherwise a warning is logged and `problem` says what is missing.
    """

    def __init__(self, path: str | os.PathLike[str] | BinaryIO, fps: float | None = None) -> None:
        super().__init__(path, fps)
        self._path = path
        self._reading = threading.Lock()  # FFmpeg must not lose a container while it reads it
        self._container = open_container(path)
        self._stream = video_stream(self._container, self._name)
        self._aspect = pixel_aspect(self._stream)
        if self._stream.width * self._stream.height <= _LARGE:
            self._stream.thread_type = "AUTO"
        self._packets = self._container.demux()
        self._states_pts = self._container.format.name != "avi"
        self._num_packets, self._reached = 0, 0.0
        self._size: tuple[int, int] | None = None
        self._decoded: Iterator[VideoFrame | None] = self._decode()
        self.fps = _believable(self._stream.average_rate)
        self.duration = _duration(self._container, self._stream)
        self.num_frames = self._expected_frames(fps)

    @property
    def size(self) -> tuple[int, int] | None:  # type: ignore[override]
        """(height, width) of the frames as given; the first is decoded to know its rotation."""
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
            if lists_every_packet(self._container, self._stream):  # also those that an edit list hides
                return max(1, sum(not entry.is_discard for entry in self._stream.index_entries))
            return self._stream.frames
        rate = self.fps if fps is None else min(fps, self.fps or fps)
        return max(1, round(self.duration * rate)) if self.duration else None

    def shown(self) -> Shown:
        timeline, times = self._timeline(), []
        for stamp, duration in self._stamps():
            times.append(timeline.place(stamp, duration))
        return Shown(times, timeline.end, self.fps)

    def _stamps(self) -> Iterator[tuple[float | None, float | None]]:
        """Yields time stamp and duration of each frame that will be shown, in order, without decoding.

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
        """Returns when a packet or frame is shown; AVI only states decoding times, which serve as well."""
        stamp = timed.pts if self._states_pts and timed.pts is not None else timed.dts
        return None if stamp is None or not timed.time_base else float(stamp * timed.time_base)

    def _video_packets(self) -> "Iterator[Packet]":
        """Yields the packets of the video; those of other streams only tell how far the file was read."""
        import av

        while True:
            try:
                with self._reading:
                    if self._closed:
                        return
                    packet = next(self._packets)
                    is_video = packet.stream.index == self._stream.index
            except (StopIteration, av.error.InvalidDataError):
                return  # a truncated file: what came before counts
            except av.error.FFmpegError as error:
                raise SourceError(f"{self._name} broke while it was read: {error}.") from error
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                end = float((stamp + (packet.duration or 0)) * packet.time_base)
                self._reached = max(self._reached, end)
            if is_video:
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
        with self._reading:
            if not self._closed:
                self._report(timeline, broken)

    @property
    def _largest_gap(self) -> float:
        return _LEAP if self._container.format.flags & _CLOCK_MAY_LEAP else float("inf")

    def _timeline(self) -> Timeline:
        return Timeline(1 / self.fps, self._largest_gap)

    def _decode(self) -> "Iterator[VideoFrame | None]":
        """Yields decoded frames, and None for a packet that cannot be decoded."""
        import av

        for packet in self._video_packets():
            try:
                with self._reading:
                    if self._closed:
                        return
                    frames = packet.decode()
            except av.error.InvalidDataError:
                yield None
                continue
            except av.error.FFmpegError as error:
                context = self._stream.codec_context
                check_frame_size(self._name, context.width, context.height)
                raise SourceError(f"{self._name} broke while it was read: {error}.") from error
            for decoded in frames:
                yield decoded
                if self._closed:
                    return

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
        with self._reading:
            self._container.close()


def _in_order(
    run: list[tuple[float | None, float | None]],
) -> list[tuple[float | None, float | None]]:
    """Sorts time stamps into the order of showing; leaves them as they are if some are missing."""
    if any(stamp is None for stamp, _ in run):
        return run
    return sorted(run, key=lambda each: each[0] or 0.0)


def _seconds_of(timed: "Packet | VideoFrame") -> float | None:
    """Returns the duration of a packet or frame in seconds, if it states one."""
    if not timed.duration or not timed.time_base:
        return None
    return float(timed.duration * timed.time_base)


def _believable(rate: object) -> float:
    """Returns the frames a second of a header, or 25 where that cannot be right."""
    stated = float(rate or 0)  # type: ignore[arg-type]
    return stated if 0 < stated <= _FASTEST_RATE else _UNKNOWN_RATE


def _duration(container: "InputContainer", stream: "VideoStream") -> float | None:
    """Returns the length in seconds that the file states, from its first frame on."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    # Matroska counts from zero, even if the first frame comes later.
    return (container.duration - max(container.start_time or 0, 0)) / 1_000_000
