"""Scales pictures on a GPU with the same bits as PIL."""

from dataclasses import dataclass

import numpy as np
import PIL
import torch
from torch import Tensor

from infinitevl.errors import InputError

_CHOOSES_ORDER = int(PIL.__version__.partition(".")[0]) >= 13
_PRECISION = 32 - 8 - 2  # fractional bits of PIL's coefficients for 8-bit pictures
_SUPPORT = 2.0  # how far the bicubic filter reaches, in pixels of the coarser grid
_BLOCK = 32  # results of a matrix product; more multiply more zeros, fewer copy more pixels
_SCRATCH = 1 << 22  # float64 pixels at a time: 32 MiB, which stay in a large GPU's cache
# PIL adds a half and drops the fraction. Half a step of the coefficients more changes nothing in
# exact sums, and keeps any rounding in the sums (there is none in IEEE arithmetic) from mattering.
_HALF = 0.5 + 2.0 ** -(_PRECISION + 1)


class Resizer:
    """Scales uint8 frames from one size to another as PIL's antialiased bicubic filter does, bit for bit.

    source_size and target_size are (height, width). channels_last: whether frames come as [..., H, W, 3],
    like arrays and video, or as [..., 3, H, W]. Both come out as [..., 3, *target_size]. Nothing is read
    back from the device and all shapes follow from the frames', so that a CUDA graph can capture a call.
    """

    def __init__(
        self,
        source_size: tuple[int, int],
        target_size: tuple[int, int],
        device: torch.device | str = "cpu",
        *,
        channels_last: bool,
    ) -> None:
        if min(*source_size, *target_size) < 1:
            raise InputError(
                f"A frame of {source_size} cannot become one of {target_size}: give sides above 0."
            )
        self.source_size = source_size
        self.target_size = target_size
        self.channels_last = channels_last
        self._passes = [
            (dim, _Axis.make(source_size[dim], target_size[dim], device))
            for dim in _order(source_size, target_size)
            if source_size[dim] != target_size[dim]
        ]

    def __call__(self, frames: Tensor) -> Tensor:
        """Scales uint8 [..., H, W, 3] or [..., 3, H, W] to [..., 3, *target_size], contiguous.

        Frames that already are of that size and layout come back themselves. Raises InputError for others
        than the resizer was made for.
        """
        self._check(frames)
        pixels = frames.movedim(-1, -3) if self.channels_last else frames
        lead = pixels.shape[:-3]
        pixels = pixels.reshape(lead.numel(), *pixels.shape[-3:])
        for dim, axis in self._passes:
            pixels = _resample(pixels.transpose(dim, -1), axis).transpose(dim, -1)
        return pixels.contiguous().view(*lead, 3, *self.target_size)

    def _check(self, frames: Tensor) -> None:
        shape = (*self.source_size, 3) if self.channels_last else (3, *self.source_size)
        if frames.dtype != torch.uint8 or frames.shape[-3:] != shape:
            wanted = ", ".join(map(str, shape))
            raise InputError(
                f"Frames are {frames.dtype} {list(frames.shape)}; valid are torch.uint8 [..., {wanted}]. "
                "Make a resizer for each size."
            )


def _order(source_size: tuple[int, int], target_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the dimensions in the order in which the installed PIL scales them; it rounds in between.

    The width came first always, and since version 13 only where the height does not lose more than twice
    the pixels that the width does.
    """
    lost_height, lost_width = (a - b for a, b in zip(source_size, target_size, strict=True))
    return (-2, -1) if _CHOOSES_ORDER and lost_height > max(0, 2 * lost_width) else (-1, -2)


@dataclass(frozen=True)
class _Axis:
    """Resamples one side as products of blocks of neighbouring pixels with small dense matrices.

    index: int64 [blocks * span], the pixels of every block; weights: float64 [blocks, span, _BLOCK],
    multiples of 2**-22; size: how many of the blocks * _BLOCK results count. From 1920 to 448 pixels a
    block spans about 150, so that this is a twelfth of the product with the whole matrix.
    """

    index: Tensor
    weights: Tensor
    size: int

    @classmethod
    def make(cls, source: int, target: int, device: torch.device | str) -> "_Axis":
        first, taps = _coefficients(source, target)
        starts = first[::_BLOCK]
        span = min(source, int((_last(first, taps.shape[1], source) - starts).max()))
        starts = np.minimum(starts, source - span)
        weights = np.zeros((len(starts), span, _BLOCK))
        for result in range(target):
            block, column = divmod(result, _BLOCK)
            start = first[result] - starts[block]
            count = min(taps.shape[1], span - start)
            weights[block, start : start + count, column] = taps[result, :count]
        index = starts[:, None] + np.arange(span)
        return cls(
            torch.from_numpy(index.reshape(-1)).to(device),
            torch.from_numpy(weights / (1 << _PRECISION)).to(device),
            target,
        )


def _last(first: np.ndarray, taps: int, source: int) -> np.ndarray:
    """Returns, for each block, one past the last pixel that its results read."""
    ends = np.minimum(first + taps, source)
    return np.maximum.reduceat(ends, np.arange(0, len(first), _BLOCK))


def _coefficients(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes PIL's filter from `source` to `target` pixels: int64 (first [target], taps [target, count]).

    Result i is the sum over t of taps[i, t] * pixel[first[i] + t], in units of 2**-22; taps past the end
    of the source are 0.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    center = (np.arange(target) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), source)
    places = first[:, None] + np.arange(int((end - first).max()))
    weights = _bicubic((places - center[:, None] + 0.5) * (1.0 / stretch))
    weights[places >= end[:, None]] = 0.0
    # One after the other, as PIL adds them: numpy's own sum would round differently.
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    scaled = weights * (1 << _PRECISION)
    return first, np.trunc(np.where(scaled < 0, scaled - 0.5, scaled + 0.5)).astype(np.int64)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Evaluates Keys' cubic filter with a = -0.5, in PIL's order of operations."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _resample(pixels: Tensor, axis: _Axis) -> Tensor:
    """Resamples uint8 [N, C, M, source] to [N, C, M, target], a part of M at a time to save memory."""
    out = torch.empty(*pixels.shape[:3], axis.size, dtype=torch.uint8, device=pixels.device)
    lines = max(1, _SCRATCH // max(1, pixels.shape[0] * pixels.shape[1] * len(axis.index)))
    for into, part in zip(out.split(lines, dim=2), pixels.split(lines, dim=2), strict=True):
        into.copy_(_sums(part, axis).view(into.shape))
    return out


def _sums(pixels: Tensor, axis: _Axis) -> Tensor:
    """Computes weighted sums of uint8 [..., source], plus a half for rounding: float64 [M, target].

    float64 holds them exactly (8 bits times 24, and a few more for the number of taps), in any order.
    """
    blocks, span, width = axis.weights.shape
    taken = pixels.index_select(-1, axis.index).double().view(pixels.shape[:-1].numel(), blocks, span)
    sums = taken.new_empty(len(taken), blocks, width)
    torch.bmm(taken.transpose(0, 1), axis.weights, out=sums.transpose(0, 1))
    return sums.flatten(1)[:, : axis.size].add_(_HALF).clamp_(0, 255)
