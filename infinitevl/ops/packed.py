"""Several sequences in one row, computed as if each were alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from infinitevl.ops.delta_rule import CHUNK_SIZE


class Packed(NamedTuple):
    """Where the N sequences of one row of T tokens lie, and where they lie when they are spread out.

    Spread out, each sequence starts a chunk of its own and has a gap behind it that no convolution spans.

    lengths: tokens of each sequence, T together. place: int64 [T], where each token lies among M places.
    num_places: M, a multiple of CHUNK_SIZE. ends: bool [M / CHUNK_SIZE], the chunks after which another
    sequence begins.
    """

    lengths: tuple[int, ...]
    place: Tensor
    num_places: int
    ends: Tensor


def pack(lengths: Sequence[int], gap: int, device: torch.device) -> Packed:
    """The places of sequences of these lengths, at least `gap` empty ones behind each."""
    sizes = torch.tensor(lengths, dtype=torch.int64)
    rooms = (sizes + gap + CHUNK_SIZE - 1) // CHUNK_SIZE * CHUNK_SIZE
    stops = rooms.cumsum(0)
    shift = (stops - rooms) - (sizes.cumsum(0) - sizes)
    place = torch.arange(int(sizes.sum())) + shift.repeat_interleave(sizes)
    ends = torch.zeros(int(stops[-1]) // CHUNK_SIZE, dtype=torch.bool)
    ends[stops[:-1] // CHUNK_SIZE - 1] = True
    return Packed(tuple(lengths), place.to(device), int(stops[-1]), ends.to(device))


def spread(x: Tensor, packed: Packed) -> Tensor:
    """[1, T, ...] -> [1, M, ...], zeros in the gaps."""
    return x.new_zeros(1, packed.num_places, *x.shape[2:]).index_copy(1, packed.place, x)


def gather(x: Tensor, packed: Packed) -> Tensor:
    """[1, M, ...] -> [1, T, ...]."""
    return x.index_select(1, packed.place)
