"""Converts pixel values of any type to bytes, and limits the number of pixels."""

import numpy as np
import torch
from torch import Tensor

from infinitevl.errors import InputError

MAX_PIXELS = 89_478_485  # of a picture or frame; from here on PIL warns of decompression bombs
MAX_VIDEO_PIXELS = 1 << 28  # of a video's chosen frames together: 3.2 GB as float32 RGB
_ROWS = 1 << 22  # values converted at a time, to save memory


def check_num_pixels(name: str, width: int, height: int) -> None:
    """Raises InputError for a picture with more than MAX_PIXELS pixels."""
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width}x{height} pixels, more than {MAX_PIXELS}. Make it smaller.")


def check_video_size(num_frames: int, height: int, width: int) -> None:
    """Raises InputError for frames of more than MAX_VIDEO_PIXELS pixels together."""
    if num_frames * height * width > MAX_VIDEO_PIXELS:
        raise InputError(
            f"The video's {num_frames} frames of {width}x{height} have more than {MAX_VIDEO_PIXELS} pixels "
            "together. Take fewer frames (fps, nframes) or smaller ones (max_pixels, total_pixels)."
        )


def to_array(values: Tensor | np.ndarray) -> np.ndarray:
    """Converts to an array in this machine's byte order; raises InputError unless it holds real numbers."""
    if isinstance(values, Tensor):
        values = _tensor_to_array(values)
    if values.dtype.kind not in "buif":
        raise InputError(f"An array of {values.dtype} is not a picture: give numbers from 0 to 255.")
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def _tensor_to_array(values: Tensor) -> np.ndarray:
    if values.is_meta or values.is_sparse or values.is_quantized:
        kind = "meta" if values.is_meta else "sparse" if values.is_sparse else "quantized"
        raise InputError(f"A {kind} tensor holds no pixels that can be read. Give a dense one.")
    values = values.detach().cpu()
    if values.is_floating_point() and values.dtype not in (torch.float16, torch.float32, torch.float64):
        values = values.float()  # numpy has no bfloat16
    return values.resolve_conj().numpy() if values.is_complex() else values.numpy()


def to_uint8(array: np.ndarray) -> np.ndarray:
    """Converts values to bytes: bool to 0 and 255, uint16 scaled. Raises InputError for floats in 0 to 1."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return narrow(array)
    check_range(float(array.min()), float(array.max()), array.dtype.kind == "f")
    return np.round(array).astype(np.uint8)


def check_range(low: float, high: float, is_float: bool) -> None:
    """Raises InputError unless values from `low` to `high` can be pixels of 0 to 255."""
    if not (low >= 0 and high <= 255):
        raise InputError(f"Pixel values go from {low:g} to {high:g}; valid are 0 to 255.")
    if is_float and 0 < high <= 1:
        raise InputError("Pixel values lie in 0 to 1; valid are 0 to 255. Multiply by 255.")


def narrow(wide: np.ndarray) -> np.ndarray:
    """Converts wide grey values to uint8: 16-bit times 255/65535, floats in 0..1 times 255, others as is."""
    narrowed = np.empty(wide.shape, np.uint8)
    if wide.size == 0:
        return narrowed
    if wide.dtype.itemsize == 2 and wide.dtype.kind in "ui":
        scale = 255 / 65535
    elif wide.dtype.kind == "f":
        scale = 255.0 if np.nan_to_num(wide.max(initial=0, where=~np.isnan(wide))) <= 1 else 1.0
    else:  # PIL reads some 16-bit files as 32-bit integers, and these may also hold plain 8-bit values.
        scale = 255 / 65535 if wide.max() > 255 else 1.0
    rows = max(1, _ROWS // max(1, wide[0].size))
    for start in range(0, len(wide), rows):
        values = np.nan_to_num(wide[start : start + rows].astype(np.float64))
        narrowed[start : start + rows] = np.clip(np.round(values * scale), 0, 255)
    return narrowed
