"""Helpers for rows: a batch that uses some rows of a larger state, and sequences packed into one row."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.delta_net.rule import CHUNK_SIZE


class Packed(NamedTuple):
    """The layout of N sequences packed into one row of T tokens, and of the same sequences spread out.

    Spread out, each sequence starts a new chunk, and a gap after it separates it from the next convolution.

    lengths: tokens of each sequence, T together. place: int64 [T], the place of each token among M.
    source: int32 [M], the token of each place, or -1. num_places: M, a multiple of CHUNK_SIZE. ends: bool
    [M / CHUNK_SIZE], the chunks after which another sequence begins. cu_seqlens: int32 [N + 1], the first
    token of each sequence in the row, and T. firsts: int32 [N + 1], the first chunk of each, and
    M / CHUNK_SIZE.
    """

    lengths: tuple[int, ...]
    place: Tensor
    num_places: int
    ends: Tensor
    cu_seqlens: Tensor
    source: Tensor
    firsts: Tensor


def pack(lengths: Sequence[int], gap: int, device: torch.device) -> Packed:
    """Lay out sequences of these lengths, with at least `gap` empty places after each."""
    sizes = torch.tensor(lengths, dtype=torch.int64)
    sizes_spread = (sizes + gap + CHUNK_SIZE - 1) // CHUNK_SIZE * CHUNK_SIZE
    stops = sizes_spread.cumsum(0)
    shift = (stops - sizes_spread) - (sizes.cumsum(0) - sizes)
    place = torch.arange(int(sizes.sum())) + shift.repeat_interleave(sizes)
    ends = torch.zeros(int(stops[-1]) // CHUNK_SIZE, dtype=torch.bool)
    ends[stops[:-1] // CHUNK_SIZE - 1] = True
    source = torch.full((int(stops[-1]),), -1, dtype=torch.int32)
    source[place] = torch.arange(len(place), dtype=torch.int32)
    cu_seqlens, firsts = (F.pad(x, (1, 0)).int() for x in (sizes.cumsum(0), stops // CHUNK_SIZE))
    place, ends, cu_seqlens, source, firsts = (
        x.to(device) for x in (place, ends, cu_seqlens, source, firsts)
    )
    return Packed(tuple(lengths), place, len(source), ends, cu_seqlens, source, firsts)


def spread(x: Tensor, packed: Packed) -> Tensor:
    """Spread out [1, T, ...] to [1, M, ...], with zeros in the gaps."""
    return x.new_zeros(1, packed.num_places, *x.shape[2:]).index_copy(1, packed.place, x)


def gather(x: Tensor, packed: Packed) -> Tensor:
    """Gather [1, M, ...] back to [1, T, ...]."""
    return _Gather.apply(x, packed.place)


class _Gather(torch.autograd.Function):
    """Gathers places; its gradient is copied instead of added up, because places are unique."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.num_places = x.shape[1]
        return x.index_select(1, place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        wide = gradient.new_zeros(1, ctx.num_places, *gradient.shape[2:])
        return wide.index_copy_(1, place, gradient), None


def read_rows(stored: Tensor, rows: Tensor | None) -> Tensor:
    """Read stored [N, ...] at rows int64 [B], or all of it."""
    return stored if rows is None else stored.index_select(0, rows)


def write_rows_(stored: Tensor, new: Tensor, rows: Tensor | None) -> None:
    """Write new [B, ...] into stored at rows, in place and in the stored dtype."""
    if rows is None:
        stored.copy_(new)
    else:
        stored.index_copy_(0, rows, new.to(stored.dtype))


def contiguous(numbers: Tensor | None) -> Tensor | None:
    """Make numbers [B] contiguous for kernels; in a state they are a row apart."""
    return None if numbers is None else numbers.contiguous()
