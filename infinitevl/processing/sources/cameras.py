"""Opens cameras, the screen and network streams, and gives their frames."""

import os
import re
import sys
import time
from collections.abc import Iterator

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.fetching.addresses import printable
from infinitevl.processing.sources.container import open_container, video_stream
from infinitevl.processing.sources.frames import Frame
from infinitevl.processing.sources.live import Clock, Opener, WallClock
from infinitevl.processing.sources.rgb import pixel_aspect, to_rgb

_SCREEN_FPS = 10.0


def stream_opener(address: str, clock: Clock = time.monotonic) -> Opener:
    """Returns a function that opens an rtsp:// or http(s):// stream."""
    options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}
    return _av_opener(address, None, options, WallClock(clock))


def camera_opener(address: str, clock: Clock = time.monotonic) -> Opener:
    """Returns a function that opens "camera:0", "camera:NAME" or /dev/video0 by this system's interface."""
    name = address.removeprefix("camera:")
    if sys.platform == "darwin":
        return _av_opener(name, "avfoundation", {"framerate": "30"}, WallClock(clock))
    if sys.platform == "win32":
        return _av_opener(f"video={name}", "dshow", {}, WallClock(clock))
    if not re.fullmatch(r"\d+|/dev/.+", name):
        raise InputError(f"{address!r} is not a camera: give camera:0, camera:1, ... or /dev/video0.")
    device = f"/dev/video{name}" if name.isdecimal() else name
    return _av_opener(device, "v4l2", {}, WallClock(clock))


def screen_opener(fps: float | None = None, clock: Clock = time.monotonic) -> Opener:
    """Returns a function that opens the screen, `fps` frames a second, 10 if None.

    On Linux it is that of the X server at DISPLAY; macOS and Windows have interfaces of their own, with which
    this has not been tried. Raises InputError where DISPLAY is not set.
    """
    options = {"framerate": f"{fps or _SCREEN_FPS:g}"}
    if sys.platform == "darwin":
        return _av_opener("Capture screen 0:none", "avfoundation", options, WallClock(clock))
    if sys.platform == "win32":
        return _av_opener("desktop", "gdigrab", options, WallClock(clock))
    display = os.environ.get("DISPLAY")
    if not display:
        raise InputError(
            "The screen cannot be read: DISPLAY is not set. Run this in a terminal of a desktop with X, or "
            "name its display, as in DISPLAY=:0; a Wayland desktop shows only its X windows there."
        )
    return _av_opener(display, "x11grab", options, WallClock(clock))


def _av_opener(address: str, format: str | None, options: dict[str, str], times: WallClock) -> Opener:
    def frames() -> Iterator[Frame]:
        import av

        place = times.connection()
        with open_container(address, format, options) as container:
            stream = video_stream(container, printable(address))
            aspect = pixel_aspect(stream)
            try:
                for decoded in container.decode(stream):
                    yield Frame(to_rgb(decoded, aspect), place(decoded.time))
            except av.error.FFmpegError as error:
                raise SourceError(f"{printable(address)} broke: {printable(str(error))}.") from error

    return frames
