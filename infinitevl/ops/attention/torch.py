"""Window attention between its projections, in plain torch: rotation, attention, ring.

A ring is a pair of keys and values [N, H_kv, S, D]; `ops.attention.ring` says which token is in which slot.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from infinitevl.ops.attention.ring import attend_chunk, attend_step, store_chunk_, store_step_
from infinitevl.ops.attention.rotary import rotate
from infinitevl.ops.rows import Packed, read_rows, write_rows_


def window_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    window: int | None,
    packed: Packed | None = None,
    num_sinks: int = 0,
    *,
    attend: Callable[..., Tensor] = attend_chunk,
) -> Tensor:
    """Read a sequence from its start, without a state.

    Args:
        q: [B, T, H, D], k, v: [B, T, H_kv, D], not yet rotated. cos, sin: float32 [B, T, D].
        window: the last keys that a query sees, its own among them; None for all.
        packed: the sequences that share the one row, which do not see each other; None for one a row.
        num_sinks: the first tokens of a sequence, which every later query sees too.

    Returns:
        [B, T, H, D].
    """
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if packed is None:
        return attend(q, k, v, None, None, window, num_sinks)
    sequences = zip(*(x.split(packed.lengths, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([attend(*each, None, None, window, num_sinks) for each in sequences], dim=1)


def window_chunk_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    window: int | None,
    rows: Tensor | None = None,
    num_valid: Tensor | None = None,
    num_sinks: int = 0,
) -> Tensor:
    """Read many tokens after those in the ring, and add them to the ring, in place.

    Args:
        keys, values: the ring. length: int64 [B], tokens stored before.
        rows: int64 [B], the row of the ring that each row of the batch continues; None: all, in order.
        num_valid: int64 [B], how many of each row's first tokens count; None for all.
        num_sinks: the first tokens of a sequence, which every later query sees too.
    """
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    ring = read_rows(keys, rows), read_rows(values, rows)
    out = attend_chunk(q, k, v, ring, length, window, num_sinks)
    store_chunk_(ring, k, v, length, num_valid, num_sinks)
    _put_back_((keys, values), ring, rows)
    return out


def window_step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    rows: Tensor | None = None,
    num_sinks: int = 0,
) -> Tensor:
    """Read one token: the same with T = 1 and a ring as long as sinks and window."""
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    ring = read_rows(keys, rows), read_rows(values, rows)
    store_step_(ring, k, v, length, num_sinks)
    _put_back_((keys, values), ring, rows)
    return attend_step(q, ring, length + 1)


def _put_back_(stored: tuple[Tensor, Tensor], ring: tuple[Tensor, Tensor], rows: Tensor | None) -> None:
    if rows is not None:  # otherwise the ring was changed where it lies
        for whole, part in zip(stored, ring, strict=True):
            write_rows_(whole, part, rows)
