"""Weights of products in 8 and 4 bits: how they are stored, and what they stand for.

A product with such a weight is the product with `dequantize()`; that is the definition of every fast path.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from infinitevl.errors import InputError

# int4: weights that share a scale, at most and at least.
_LARGEST_GROUP, _SMALLEST_GROUP = 128, 8
_PER_WORD = 8  # 4-bit values in an int32
# int4: which parts of a group's largest value become the end of the scale; the one with the least error wins.
_SHRINKING = (1.0, 0.9, 0.8)
_INT8_END, _FP8_END = 127, 448  # largest values of the formats
_ROWS_AT_ONCE = 1024  # bounds what quantizing takes beside weight and result


@dataclass(frozen=True)
class Quantized:
    """A weight [outputs, inputs] in few bits.

    Attributes:
        data: "int8": int8 [outputs, inputs]. "fp8": float8_e4m3fn [outputs, inputs]. "int4": int32
            [outputs, groups x J], eight values 0..15 a word, each standing for itself minus 8: in word j of
            a group of 8 J columns, the four bits from 4p on (p = 0..3) are column 2 (p J + j), and those from
            4p + 16 on the column after that, so that a shift and a mask bring neighbours into the two halves
            of a word; the last group is filled up.
        scale: what the values are times. float32 [outputs, 1]; "int4": bfloat16 [outputs, groups].
        kind: one of `KINDS`. shape: (outputs, inputs). dtype: of activations, and of `dequantize()`.
    """

    data: Tensor
    scale: Tensor
    kind: str
    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        return self.data.nbytes + self.scale.nbytes

    @property
    def group(self) -> int:
        """Columns that share a scale; all of them where there is one scale a row."""
        if self.kind != "int4":
            return self.shape[1]
        return _PER_WORD * (self.data.shape[1] // self.scale.shape[1])

    def dequantize(self) -> Tensor:
        """The weight that this stands for: [outputs, inputs]."""
        values = _unpack(self.data, self.scale.shape[1]) if self.kind == "int4" else self.data
        grouped = values.float().unflatten(1, (self.scale.shape[1], -1)) * self.scale.float()[..., None]
        return grouped.flatten(1)[:, : self.shape[1]].to(self.dtype)


def quantize(weight: Tensor, kind: str) -> Quantized:
    """The nearest that `kind` has to a weight [outputs, inputs].

    Raises:
        InputError: an unknown kind, or values that are not finite.
    """
    check_quantization(kind)
    if not torch.isfinite(weight).all():
        raise InputError(
            f"a weight of shape {tuple(weight.shape)} holds NaN or infinity, which {kind} cannot. Check the "
            "checkpoint; in full precision such a model answers nothing either."
        )
    data, scale = zip(*(_KINDS[kind](part.float()) for part in weight.split(_ROWS_AT_ONCE)), strict=True)
    return Quantized(torch.cat(data), torch.cat(scale), kind, weight.shape, weight.dtype)


def check_quantization(kind: str) -> None:
    """Raise InputError for what is none of `KINDS`."""
    if kind not in KINDS:
        raise InputError(f"there is no quantization {kind!r}; choose one of {', '.join(KINDS)}, or none.")


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = _scale(weight, _INT8_END)
    return (weight / scale).round().to(torch.int8), scale


def _fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = _scale(weight, _FP8_END)
    return (weight / scale).to(torch.float8_e4m3fn), scale


def _scale(weight: Tensor, end: int) -> Tensor:
    """Return the scale of each row that maps its largest value to `end`: [outputs, 1]; never 0."""
    return (weight.abs().amax(1, keepdim=True) / end).clamp(min=torch.finfo(torch.float32).tiny)


def _int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    group = _group(inputs)
    weight = torch.nn.functional.pad(weight, (0, -inputs % group)).view(outputs, -1, group)
    # The value that lies farthest out becomes -8, whatever its sign: all 16 levels are used.
    farthest = weight.gather(2, weight.abs().argmax(2, keepdim=True))
    best, least = torch.ones_like(farthest), torch.full_like(farthest, math.inf)
    for part in _SHRINKING:
        scale = _nonzero(farthest * (part / -8))
        error = (_levels(weight, scale) * scale - weight).square().sum(2, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return _pack(_levels(weight, best) + 8), best[..., 0].to(torch.bfloat16)


def _nonzero(scale: Tensor) -> Tensor:
    """As bfloat16 holds it, and 1 in groups of zeros."""
    return torch.where(scale == 0, 1.0, scale).to(torch.bfloat16).float()


def _levels(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight / scale).round().clamp(-8, 7)


def _group(inputs: int) -> int:
    """The largest power of two that divides the inputs, within bounds."""
    return min(max(inputs & -inputs, _SMALLEST_GROUP), _LARGEST_GROUP)


def _pack(values: Tensor) -> Tensor:
    """0..15 [outputs, groups, columns] -> int32 [outputs, groups x columns / 8]."""
    parts = values.to(torch.int32).unflatten(2, (_PER_WORD // 2, -1, 2))
    words = torch.zeros_like(parts[:, :, 0, :, 0])
    for place in range(_PER_WORD // 2):
        words |= parts[:, :, place, :, 0] << 4 * place
        words |= parts[:, :, place, :, 1] << 4 * place + 16
    return words.flatten(1)


def _unpack(words: Tensor, num_groups: int) -> Tensor:
    """The inverse, with 8 taken off: -8..7 [outputs, columns]."""
    places = torch.tensor([[4 * place, 4 * place + 16] for place in range(4)], device=words.device)
    shifted = words.unflatten(1, (num_groups, 1, -1, 1)) >> places[:, None, :].to(torch.int32)
    return ((shifted & 15) - 8).flatten(1)  # [outputs, groups, 4, J, 2] before


_KINDS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"int8": _int8, "int4": _int4, "fp8": _fp8}
KINDS = tuple(_KINDS)
Weight = Tensor | Quantized


def dense(weight: Weight) -> Tensor:
    """The weight itself, whichever way it is held."""
    return weight.dequantize() if isinstance(weight, Quantized) else weight
