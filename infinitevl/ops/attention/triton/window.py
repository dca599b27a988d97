"""Window attention over a ring, as Triton kernels with the signatures and results of `ops.attention.torch`.

Many tokens take three kernels: rotate the new queries and keys, attend, then merge the splits and write the
new keys and values into the ring (only now: every query has read what they overwrite). One token takes two:
the program of the first split meets the new key in registers and stores it, all others pass over its slot.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from infinitevl.ops.attention.triton.attend import LOG2_E, merged_rows, num_programs, precision, supports_head
from infinitevl.ops.attention.triton.window_kernels import (
    attend_kernel,
    finish_kernel,
    merge_kernel,
    rotate_kernel,
    step_kernel,
)
from infinitevl.ops.rows import contiguous

ALL_TOKENS = 1 << 30  # the window of full attention


class Tiles(NamedTuple):
    """How a kernel divides its work; `tokens` queries of all heads of a group meet `keys` keys at a time."""

    tokens: int
    keys: int
    splits: int
    warps: int
    stages: int


def supports(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernels here can do these sizes; they raise ValueError where they cannot."""
    return (
        num_heads % num_kv_heads == 0 and num_heads // num_kv_heads <= 64 and supports_head(head_dim, dtype)
    )


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
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """Read many tokens after those in the ring, and add them to the ring, in place.

    Args:
        q: [B, T, H, D], k, v: [B, T, H_kv, D], not yet rotated, any strides but the last.
        cos, sin: float32 [B, T, D].
        keys, values: the ring [N, H_kv, S, D] in the dtype of q; rows may lie anywhere, each is contiguous.
        length: int64 [B], tokens stored before.
        window: the last keys that a query sees, its own among them; None for all (then S >= all tokens).
        rows: int64 [B], the row of the ring that each row of the batch continues; None: all, in order.
        num_valid: int64 [B], how many of each row's first tokens count; None for all. Outputs of the others
            are finite and mean nothing.
        num_sinks: the first tokens of a sequence, which every later query sees too; in the first slots.
        tiles: another division of the work than the built-in one.

    Returns:
        [B, T, H, D].
    """
    _check(q, k, v, cos, sin, keys, values)
    length, rows, num_valid = length.contiguous(), contiguous(rows), contiguous(num_valid)
    tiles = tiles or chunk_tiles(q, k, keys)
    q, k = _rotate(q, k, cos, sin)
    out = torch.empty_like(q)
    parts, sums = _parts(q, tiles.splits) if tiles.splits > 1 else (out, out)
    _attend(q, k, v, keys, values, length, window, rows, num_valid, num_sinks, parts, sums, tiles)
    _finish(k, v, keys, values, length, rows, num_valid, num_sinks, parts, sums, out, tiles.splits)
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
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    """Read one token: the same with T = 1 and a ring as long as sinks and window."""
    _check(q, k, v, cos, sin, keys, values)
    length, rows = length.contiguous(), contiguous(rows)
    batch, _, heads, dim = q.shape
    kv_heads, slots = keys.shape[1:3]
    tiles = tiles or step_tiles(q, keys)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    parts, sums = _parts(q, tiles.splits)
    step_kernel[(tiles.splits, kv_heads, batch)](
        *(q, k, v, cos, sin, keys, values, length, rows, parts, sums, slots),
        *(q.stride(0), q.stride(2), k.stride(0), k.stride(2), v.stride(0), v.stride(2)),
        *(cos.stride(0), sin.stride(0), keys.stride(0), values.stride(0), dim**-0.5 * LOG2_E),
        **_sizes(q, kv_heads, rows_at_least=16, tokens=1),
        BLOCK_K=tiles.keys,
        SPLITS=tiles.splits,
        SINKS=num_sinks,
        PRECISION=precision(q),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    per_program = merged_rows(tiles.splits)
    merge_kernel[(triton.cdiv(batch * heads, per_program),)](
        parts, sums, out, batch * heads, SPLITS=tiles.splits, ROWS=per_program, D=dim
    )
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> None:
    _, kv_heads, slots, dim = keys.shape
    if not supports(q.shape[2], kv_heads, dim, q.dtype):
        raise ValueError(
            f"no window kernel for {q.shape[2]} query heads, {kv_heads} key heads of width {dim} in {q.dtype}"
        )
    if any(x.dtype != q.dtype for x in (k, v, keys, values)):
        raise ValueError(f"queries are {q.dtype}, the ring {keys.dtype}: a ring needs the activations' dtype")
    for ring in (keys, values):
        assert ring.stride()[1:] == (slots * dim, dim, 1), "each row of a ring is contiguous"
    assert all(x.stride(-1) == 1 for x in (q, k, v, cos, sin))


@lru_cache(maxsize=256)
def _chunk_tiles(
    batch: int, tokens: int, group: int, kv_heads: int, slots: int, dim: int, exact: bool, programs: int
) -> Tiles:
    rows, keys, warps, stages = (32, 32, 4, 1) if exact or dim > 128 else (128, 64, 8, 3)
    padded = triton.next_power_of_2(group)
    block = max(1, min(rows // padded, triton.next_power_of_2(tokens)), 16 // padded)
    units = batch * kv_heads * triton.cdiv(tokens, block)
    most = triton.cdiv(slots + tokens, 2 * keys)

    def cost(splits: int) -> float:
        """Rounds of programs, each a split long, and an estimate of what it takes to merge them."""
        return triton.cdiv(units * splits, programs) / splits + 0.0003 * units * splits

    return Tiles(block, keys, min(range(1, min(most, 64) + 1), key=cost), warps, stages)


def chunk_tiles(q: Tensor, k: Tensor, keys: Tensor) -> Tiles:
    """How `window_chunk_` divides its work: from shapes alone, so that every replay does the same."""
    batch, tokens, heads, dim = q.shape
    group = heads // k.shape[2]
    exact = q.dtype == torch.float32
    return _chunk_tiles(batch, tokens, group, k.shape[2], keys.shape[2], dim, exact, num_programs(q))


def step_tiles(q: Tensor, keys: Tensor) -> Tiles:
    """How `window_step_` divides its work: about two programs a multiprocessor, none below 128 keys."""
    kv_heads, slots, dim = keys.shape[1:]
    block = 64 if q.element_size() == 2 and dim <= 128 else 32
    splits = min(2 * num_programs(q) // (q.shape[0] * kv_heads), triton.cdiv(slots, 128))
    return Tiles(1, block, max(1, splits), 4, 3)


def _sizes(q: Tensor, kv_heads: int, rows_at_least: int, tokens: int) -> dict[str, int]:
    """Head sizes of a kernel and their paddings; rows of a block are tokens x padded group."""
    group = q.shape[2] // kv_heads
    padded = triton.next_power_of_2(group)
    padded = max(padded, rows_at_least // tokens)
    width = max(16, triton.next_power_of_2(q.shape[3]))
    return {"GROUP": group, "GROUP_PAD": padded, "D": q.shape[3], "WIDTH": width}


def _parts(q: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """Room for what each split finds: float32 [splits, B, T, H, D] and [splits, B, T, H]."""
    parts = torch.empty(splits, *q.shape, dtype=torch.float32, device=q.device)
    return parts, torch.empty(splits, *q.shape[:-1], dtype=torch.float32, device=q.device)


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated copies, contiguous."""
    batch, tokens, heads, dim = q.shape
    new_q, new_k = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    rotate_kernel[(tokens, batch)](
        *(q, k, cos, sin, new_q, new_k, tokens),
        *q.stride()[:3],
        *k.stride()[:3],
        *cos.stride()[:2],
        *sin.stride()[:2],
        H=heads,
        H_KV=k.shape[2],
        D=dim,
        WIDTH=triton.next_power_of_2(dim),
    )
    return new_q, new_k


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    window: int | None,
    rows: Tensor | None,
    num_valid: Tensor | None,
    num_sinks: int,
    parts: Tensor,
    sums: Tensor,
    tiles: Tiles,
) -> None:
    batch, tokens, _, dim = q.shape
    kv_heads, slots = keys.shape[1:3]
    attend_kernel[(triton.cdiv(tokens, tiles.tokens), kv_heads * tiles.splits, batch)](
        *(q, k, v, keys, values, length, num_valid, rows, parts, sums, tokens, slots),
        *(ALL_TOKENS if window is None else window, *v.stride()[:3], keys.stride(0), values.stride(0)),
        dim**-0.5 * LOG2_E,
        **_sizes(q, kv_heads, rows_at_least=16, tokens=tiles.tokens),
        H_KV=kv_heads,
        BLOCK_T=tiles.tokens,
        BLOCK_K=tiles.keys,
        SPLITS=tiles.splits,
        SINKS=num_sinks,
        WRAPS=(slots - num_sinks) % tiles.keys != 0 or num_sinks % tiles.keys != 0,
        PRECISION=precision(q),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def _finish(
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    rows: Tensor | None,
    num_valid: Tensor | None,
    num_sinks: int,
    parts: Tensor,
    sums: Tensor,
    out: Tensor,
    splits: int,
) -> None:
    """Merge the splits and store the new keys and values, in one launch."""
    batch, tokens, heads, dim = out.shape
    kv_heads, slots = keys.shape[1:3]
    num_rows = batch * tokens * heads
    per_program = merged_rows(splits)
    num_merging = triton.cdiv(num_rows, per_program) if splits > 1 else 0
    num_storing = triton.cdiv(batch * tokens * kv_heads, 16)
    finish_kernel[(num_merging + num_storing,)](
        *(parts, sums, out, num_rows, num_merging),
        *(k, v, keys, values, length, num_valid, rows, batch * tokens * kv_heads, tokens, slots),
        *(*v.stride()[:3], keys.stride(0), values.stride(0)),
        H_KV=kv_heads,
        SPLITS=splits,
        ROWS=per_program,
        STORED=16,
        SINKS=num_sinks,
        D=dim,
        WIDTH=triton.next_power_of_2(dim),
    )
