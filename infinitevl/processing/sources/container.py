"""Opens files, devices and addresses through PyAV, and tells whether a file was read to its end."""

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from infinitevl.errors import SourceError
from infinitevl.processing.fetching.addresses import other_than_file, printable
from infinitevl.processing.pictures.pixels import MAX_PIXELS

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

OPEN_TIMEOUT = 10.0
READ_TIMEOUT = 5.0
_NEARLY_WHOLE = 0.9
_LISTS_EVERY_PACKET = ("mov", "avi")
_SEGMENT = bytes.fromhex("18538067")  # the Matroska element around all content
_FLV_HEAD = 11  # bytes of an FLV tag before its data
_FLV_KINDS = (8, 9, 18)  # FLV tags: sound, picture, script


def open_container(
    source: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
    options: dict[str, str] | None = None,
) -> "InputContainer":
    """Opens a file, device (with its `format`) or address. Raises SourceError with the reason if it cannot.

    A path object is a file, whatever its name looks like. Content of files and bytes cannot make FFmpeg open
    network addresses, and frames above MAX_PIXELS are not decoded.
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
            raise SourceError(f"{printable(str(opened))} cannot be opened: {printable(reason)}.") from error
        raise SourceError(
            f"No video can be opened: {printable(reason)}. Give a video file, a folder of pictures, "
            "camera:0, or an rtsp:// or http(s):// address."
        ) from error


def _is_address(source: str | os.PathLike[str]) -> bool:
    """Tells whether a string names a protocol; a path object never does."""
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE) is not None


def _check_file(name: str) -> None:
    if kind := other_than_file(name):
        raise SourceError(
            f"{name} is {kind}, not a video file. Give a file, camera:0, an address, or an iterable."
        )
    if os.path.isfile(name) and os.path.getsize(name) == 0:
        raise SourceError(f"{name} is an empty file. Get a whole copy.")


def video_stream(container: "InputContainer", name: str) -> "VideoStream":
    """Returns the first video stream that can be decoded; if none, closes the file, raises SourceError."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if stream.codec_context is None or stream.disposition & Disposition.attached_pic:
            continue
        context = stream.codec_context
        try:
            check_frame_size(name, context.width, context.height)
        except SourceError:
            container.close()
            raise
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
    """Returns the limit for FFmpeg's own check, which also counts the margins of its buffers."""
    return str(MAX_PIXELS * 5 // 4 + 65536)


def check_frame_size(name: str, width: int, height: int) -> None:
    """Raises SourceError for frames with more than MAX_PIXELS pixels."""
    if width * height > MAX_PIXELS:
        raise SourceError(
            f"{name} has {width}x{height} pixels a frame, more than {MAX_PIXELS}. Make the video smaller."
        )


def lists_every_packet(container: "InputContainer", stream: "VideoStream") -> bool:
    """Tells whether a file's index lists every packet of its video, not only key frames."""
    return container.format.name.startswith(_LISTS_EVERY_PACKET) and len(stream.index_entries) > 0


def is_cut(
    path: str | os.PathLike[str] | BinaryIO,
    container: "InputContainer",
    stream: "VideoStream",
    num_packets: int,
    reached: float,
) -> bool:
    """Tells whether a file ends before its content does.

    num_packets: packets of the video that were read. reached: seconds at which the last packet of any stream
    ends; a whole file may state a longer duration, as where its last frame is shown for long.
    """
    format = container.format.name
    if lists_every_packet(container, stream):
        return num_packets < _NEARLY_WHOLE * len(stream.index_entries)
    if not container.duration:
        return False
    start = max(container.start_time or 0, 0)
    if reached * 1_000_000 >= _NEARLY_WHOLE * (container.duration - start):
        return False
    checks = {"matroska": _holds_its_segment, "flv": _ends_with_a_tag}
    check = next((each for name, each in checks.items() if format.startswith(name)), None)
    return check is None or not _passes(check, path)


def _passes(check: Callable[[BinaryIO], bool], path: str | os.PathLike[str] | BinaryIO) -> bool:
    """Runs a check on an open or a named file; False for what is no file that can be read twice."""
    if not isinstance(path, str | os.PathLike):
        return path.seekable() and check(path)
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return check(file)


def _ends_with_a_tag(file: BinaryIO) -> bool:
    """Tells whether an FLV file ends where its last tag does; the size of each tag stands behind it."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 4))
    tag_size = int.from_bytes(file.read(4), "big")
    start = length - 4 - tag_size
    if tag_size <= _FLV_HEAD or start < 0:
        return False
    file.seek(start)
    head = file.read(4)
    return head[0] in _FLV_KINDS and int.from_bytes(head[1:], "big") == tag_size - _FLV_HEAD


def _holds_its_segment(file: BinaryIO) -> bool:
    """Tells whether a Matroska file is as long as it states; False if it states nothing."""
    file.seek(0)
    return _reaches(file.read(4096), file.seek(0, os.SEEK_END))


def _reaches(head: bytes, length: int) -> bool:
    at = head.find(_SEGMENT) + len(_SEGMENT)
    if at < len(_SEGMENT) or at >= len(head) or not head[at]:
        return False
    width = 9 - head[at].bit_length()  # of the size field; its first set bit tells it
    size = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    is_unknown = size == (1 << 7 * width) - 1
    return not is_unknown and length >= at + width + size
