"""Attention of the vision encoder, in plain torch: within runs of patches, rotated by their positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.attention.rotary import rotate


@dataclass(frozen=True)
class Segments:
    """Equally long runs of patches that attend within themselves."""

    size: int
    index: Tensor | None  # int64 [runs * size]; None where the runs are the whole sequence in order


def vision_attention(qkv: Tensor, cos: Tensor, sin: Tensor, segments: Sequence[Segments]) -> Tensor:
    """Let every patch attend to its run.

    Args:
        qkv: [N, 3, H, D], queries, keys and values, not yet rotated. cos, sin: float32 [N, D].
        segments: runs that together hold each of the N patches once.

    Returns:
        [N, H, D].
    """
    q, k, v = qkv.unbind(1)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if segments[0].index is None:
        return _attend(q, k, v, segments[0].size)
    out = torch.empty_like(q)
    for part in segments:
        out[part.index] = _attend(q[part.index], k[part.index], v[part.index], part.size)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    q, k, v = (x.unflatten(0, (-1, size)).transpose(1, 2) for x in (q, k, v))  # [runs, H, size, D]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
