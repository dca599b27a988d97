"""Whether a video file ends before its time."""

import os
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_NEARLY_WHOLE = 0.9
_LISTS_EVERY_PACKET = ("mov", "avi")
_SEGMENT = bytes.fromhex("18538067")  # the element of Matroska that holds everything


def lists_every_packet(container: "InputContainer", stream: "VideoStream") -> bool:
    """Whether a file's index names every packet of its video, and not key frames alone."""
    return container.format.name.startswith(_LISTS_EVERY_PACKET) and len(stream.index_entries) > 0


def is_cut(
    path: str | os.PathLike[str] | BinaryIO,
    container: "InputContainer",
    stream: "VideoStream",
    num_packets: int,
    reached: float,
) -> bool:
    """Whether there should be more of a file than could be read.

    num_packets: of the video, all that came. reached: seconds at which the last packet of any kind ends; it
    may be less than the file states without any fault, as where its last frame is shown for long.
    """
    format = container.format.name
    if lists_every_packet(container, stream):
        return num_packets < _NEARLY_WHOLE * len(stream.index_entries)
    if not container.duration:
        return False
    start = max(container.start_time or 0, 0)
    if reached * 1_000_000 >= _NEARLY_WHOLE * (container.duration - start):
        return False
    return not (format.startswith("matroska") and _holds_its_segment(path))


def _holds_its_segment(path: str | os.PathLike[str] | BinaryIO) -> bool:
    """Whether a Matroska file is as long as it says; False if it does not say."""
    if not isinstance(path, str | os.PathLike):
        if not path.seekable():
            return False
        path.seek(0)
        return _reaches(path.read(4096), path.seek(0, os.SEEK_END))
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return _reaches(file.read(4096), os.path.getsize(path))


def _reaches(head: bytes, length: int) -> bool:
    at = head.find(_SEGMENT) + len(_SEGMENT)
    if at < len(_SEGMENT) or at >= len(head) or not head[at]:
        return False
    width = 9 - head[at].bit_length()  # of the number, whose first set bit tells it
    size = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    is_unknown = size == (1 << 7 * width) - 1
    return not is_unknown and length >= at + width + size
