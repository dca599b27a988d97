"""Pictures and videos made on the spot."""

import io
import struct
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


def hide_start(path: Path, seconds: float) -> Path:
    """Let the edit list of an mp4 file begin so much later, as cutting without encoding does."""
    data = bytearray(path.read_bytes())

    def number(box: bytes, offset: int) -> int:
        return struct.unpack_from(">I", data, data.find(box) + offset)[0]

    edit = data.find(b"elst") + 12
    length, start, rate = struct.unpack_from(">IiI", data, edit)
    length -= int(seconds * number(b"mvhd", 16))
    struct.pack_into(">IiI", data, edit, length, start + int(seconds * number(b"mdhd", 16)), rate)
    path.write_bytes(data)
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix (a, b, c, d) into an mp4 file."""
    data = bytearray(path.read_bytes())
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    at = data.find(b"tkhd") + 44
    data[at : at + 36] = matrix
    path.write_bytes(data)
    return path


def write_flat(
    path: Path,
    values: list[int],
    stamps_ms: list[int] | None = None,
    last_ms: int | None = None,
    sound_s: float = 0.0,
    aspect: Fraction | None = None,
    codec: str = "libx264",
    **options: str,
) -> Path:
    """Grey frames 0.1 s apart or at their stamps, the last one shown for `last_ms`, beside some silence."""
    with av.open(str(path), "w", options=options) as container:
        rate = 10 if stamps_ms is None else 1000
        stream = container.add_stream(codec, rate=rate, options={"bf": "0"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        sound = container.add_stream("libopus", rate=48000) if sound_s else None
        for number, value in enumerate(values):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), format="rgb24")
            frame.pts, frame.time_base = (stamps_ms or range(len(values)))[number], Fraction(1, rate)
            if last_ms and number == len(values) - 1:
                frame.duration = last_ms
            for packet in stream.encode(frame):
                if last_ms and packet.pts == frame.pts and number == len(values) - 1:
                    packet.duration = last_ms
                container.mux(packet)
        for packet in stream.encode():
            if last_ms and stamps_ms and round(packet.pts * packet.time_base * 1000) == stamps_ms[-1]:
                packet.duration = round(last_ms / 1000 / packet.time_base)
            container.mux(packet)
        for block in range(int(sound_s * 50)):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), "s16", "stereo")
            silence.rate, silence.pts = 48000, 960 * block
            container.mux(sound.encode(silence))
        if sound:
            container.mux(sound.encode())
    return path
