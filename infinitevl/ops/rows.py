"""Rows: some of the rows of a larger state, and several sequences that share one row."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.delta_net.rule import CHUNK_SIZE


class Packed(NamedTuple):
    """Where the N sequences of one row of T tokens lie, and where they lie when they are spread out.

    Spread out, each sequence starts a chunk of its own and has a gap behind it that no convolution spans.

    lengths: tokens of each sequence, T together. place: int64 [T], where each token lies among M places.
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
    """The places of sequences of these lengths, at least `gap` empty ones behind each."""
    sizes = torch.tensor(lengths, dtype=torch.int64)
    rooms = (sizes + gap + CHUNK_SIZE - 1) // CHUNK_SIZE * CHUNK_SIZE
    stops = rooms.cumsum(0)
    shift = (stops - rooms) - (sizes.cumsum(0) - sizes)
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
    """[1, T, ...] -> [1, M, ...], zeros in the gaps."""
    return x.new_zeros(1, packed.num_places, *x.shape[2:]).index_copy(1, packed.place, x)


def gather(x: Tensor, packed: Packed) -> Tensor:
    """[1, M, ...] -> [1, T, ...]."""
    return _Gather.apply(x, packed.place)


class _Gather(torch.autograd.Function):
    """Its gradient is copied to its place, where torch would add it up."""

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
    """What a batch continues: stored [N, ...] at rows int64 [B], or all of it."""
    return stored if rows is None else stored.index_select(0, rows)


def write_rows_(stored: Tensor, new: Tensor, rows: Tensor | None) -> None:
    """Put new [B, ...] where it came from, in place and in the dtype stored there."""
    if rows is None:
        stored.copy_(new)
    else:
        stored.index_copy_(0, rows, new.to(stored.dtype))


def contiguous(numbers: Tensor | None) -> Tensor | None:
    """Numbers [B], one right behind the other, as kernels read them; in a state they lie a row apart."""
    return None if numbers is None else numbers.contiguous()
