"""Turns a frame (path, PIL picture, array, tensor) into pixels of the stream's size on the model's device."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infinitevl.errors import InputError
from infinitevl.processing.pictures.opening import open_image
from infinitevl.processing.pictures.resizer import Resizer
from infinitevl.processing.pictures.scaling import resize_frame

_MOST_SIZES = 8


class Preprocessor:
    """Resizes frames of any size to `frame_size` = (height, width) on `device`.

    A GPU gives the same bytes as PIL does on a CPU.
    """

    def __init__(self, frame_size: tuple[int, int], device: torch.device):
        self.frame_size, self.device = frame_size, device
        self._resizers: dict[tuple[int, int, bool], Resizer] = {}

    def __call__(self, frame: Any) -> Tensor:
        """Convert a PIL picture, path, array [H, W, 3] or tensor [3, H, W] to uint8 [3, height, width].

        Raises:
            InputError: not a picture.
        """
        if self.device.type != "cuda":
            return resize_frame(frame, self.frame_size).to(self.device)
        if isinstance(frame, Tensor) and frame.is_cuda:
            return self._scaled(_checked_tensor(frame), channels_last=False)
        array = frame if _is_plain(frame) else np.array(open_image(frame))
        pinned = torch.from_numpy(np.ascontiguousarray(array)).pin_memory()
        return self._scaled(pinned.to(self.device, non_blocking=True), channels_last=True)

    def _scaled(self, pixels: Tensor, channels_last: bool) -> Tensor:
        height, width = pixels.shape[:2] if channels_last else pixels.shape[1:]
        key = (height, width, channels_last)
        if key not in self._resizers:
            if len(self._resizers) >= _MOST_SIZES:
                self._resizers.pop(next(iter(self._resizers)))
            self._resizers[key] = Resizer(
                (height, width), self.frame_size, self.device, channels_last=channels_last
            )
        return self._resizers[key](pixels)


def _is_plain(frame: Any) -> bool:
    """Whether `frame` is an array of RGB bytes."""
    return isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (3,)


def _checked_tensor(frame: Tensor) -> Tensor:
    if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[0] != 3:
        raise InputError(
            f"a frame is a tensor of {frame.dtype} and shape {tuple(frame.shape)}; give uint8 [3, H, W]."
        )
    return frame


def checked_size(size: int | Sequence[int], side: int) -> tuple[int, int]:
    """Return height and width; InputError if they are not multiples of `side` pixels."""
    sides = size if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(n, Integral) and n >= side and n % side == 0 for n in sides):
        raise InputError(
            f"frame_size is {size!r}; height and width must be multiples of {side} pixels, "
            "the side of one token."
        )
    height, width = sides
    return int(height), int(width)
