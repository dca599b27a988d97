"""Rotary angles that stay exact for streams without end.

An angle is position x frequency. In float32 that product is lost beyond some millions of positions, so turns
are counted in 64-bit integers: a frequency becomes a fraction of 2^64 turns a position, and the product
wraps around exactly where the angle does. The phase error at position 10^9 is below 10^-9.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

# 50 digits: pi in float64 would limit a step to 53 of its 64 bits.
_PI = Fraction("3.14159265358979323846264338327950288419716939937510")
RADIANS_PER_STEP = float(2 * _PI / 2**64)


def phase_steps(head_dim: int, theta: float) -> Tensor:
    """Return the rotation per position in 2^-64 of a full turn, as signed numbers: int64 [head_dim / 2].

    The frequencies are those of the field, float32(1 / theta^(2 i / head_dim)). Always on the CPU, also while
    a model is built without memory.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = (1.0 / (theta**exponents)).tolist()
    turns = [round(Fraction(f) / (2 * _PI) * 2**64) % 2**64 for f in frequencies]
    return torch.tensor([t - 2**64 if t >= 2**63 else t for t in turns], dtype=torch.int64, device="cpu")


def section_axes(sections: Sequence[int]) -> Tensor:
    """Return the position axis of each frequency: 0 time, 1 height, 2 width; int64 [sum of sections]."""
    axes = [axis for axis, size in enumerate(sections) for _ in range(size)]
    return torch.tensor(axes, dtype=torch.int64, device="cpu")


def rotary_angles(position_ids: Tensor, steps: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute cosine and sine for three position axes.

    Args:
        position_ids: int64 [3, B, T] (time, height, width), of any size.
        steps: int64 [D / 2] of `phase_steps`. axes: int64 [D / 2] of `section_axes`.

    Returns:
        cos, sin: float32 [B, T, D], the first half repeated in the second.
    """
    positions = position_ids.permute(1, 2, 0)[..., axes]  # [B, T, D / 2]
    angles = (positions * steps).to(torch.float32) * RADIANS_PER_STEP
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., H, D] by angles [..., D]; computed in float32, returned in x's dtype."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)).to(x.dtype)
