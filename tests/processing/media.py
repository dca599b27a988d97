"""Pictures and videos made on the spot."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def make_picture(width: int = 84, height: int = 56, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def numbered_frame(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A grey frame whose brightness is its number, eight apart, so that a lossy codec keeps it."""
    return np.full((height, width, 3), 8 * (number % 32), dtype=np.uint8)


def number_of(image: np.ndarray) -> int:
    return round(float(image.mean()) / 8)


def write_video(
    path: Path,
    times: list[int],
    rate: int = 10,
    format: str | None = None,
    start: int = 0,
    codec: str = "mpeg4",
    **options: str,
) -> Path:
    """Numbered frames at `times` (in units of 1 / rate seconds, `start` added)."""
    with av.open(str(path), "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 5, 1_000_000
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = start + time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def break_packets(path: Path, first: int, last: int) -> None:
    """Make these packets of an H.264 mp4 file such that no decoder takes them."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for packet in packets[first : last + 1]:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
