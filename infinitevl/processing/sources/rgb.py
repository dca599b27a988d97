"""Converts decoded frames to RGB: square pixels, upright, on white where transparent."""

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_WIDEST_PIXEL = 10  # headers that state more are wrong


def to_rgb(decoded: "VideoFrame", aspect: Fraction | None = None) -> np.ndarray:
    """Converts a decoded frame to uint8 [height, width, 3], turned and mirrored by its display matrix.

    aspect: width of a pixel by its height; the frame's width is scaled by it. None for square pixels.
    """
    width = None if aspect is None else _wide(decoded.width, aspect)
    is_clear = any(part.is_alpha for part in decoded.format.components)
    format, filter = "rgba" if is_clear else "rgb24", None if width is None else "BICUBIC"
    pixels = decoded.reformat(width=width, format=format, interpolation=filter).to_ndarray()
    if is_clear:
        pixels = _on_white(pixels)
    return np.ascontiguousarray(_upright(pixels, display_matrix(decoded)))


def pixel_aspect(stream: "VideoStream") -> Fraction | None:
    """Returns width / height of a stream's pixels; None where they are square or unknown."""
    aspect = stream.sample_aspect_ratio
    if not aspect or aspect == 1 or not 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL:
        return None
    return Fraction(aspect)


def shown_size(decoded: "VideoFrame", aspect: Fraction | None) -> tuple[int, int]:
    """Returns the (height, width) of `to_rgb`'s result."""
    height, width = decoded.height, _wide(decoded.width, aspect or Fraction(1))
    a, b, c, d = display_matrix(decoded)
    return (width, height) if abs(b) + abs(c) > abs(a) + abs(d) else (height, width)


def _wide(width: int, aspect: Fraction) -> int:
    return max(1, round(width * aspect))


def display_matrix(decoded: "VideoFrame") -> tuple[int, int, int, int]:
    """Returns (a, b, c, d) of a frame's display matrix, or (1, 0, 0, 1) if it has none.

    A point (x, y) is shown at (a x + c y, b x + d y), up to the scale.
    """
    data = decoded.side_data.get("DISPLAYMATRIX")
    if data is not None:
        values = np.frombuffer(data, np.int32)  # type: ignore[call-overload]
        a, b, c, d = (int(values[index]) for index in (0, 1, 3, 4))
        if a * d != b * c:
            return a, b, c, d
    return 1, 0, 0, 1


def _upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turns pixels [H, W, 3] by quarters and mirrors them, as the nearest such matrix does."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):  # columns become rows
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if d < 0 else pixels


def _on_white(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return pixels[..., :3]
    blended = pixels[..., :3] * alpha + 255 * (255 - alpha)
    return ((blended + 127) // 255).astype(np.uint8)
