"""Attention of the vision encoder as Triton kernels, as in `ops.attention.vision`.

Short runs are one tile: rotated as they are loaded, one program for a run and a head. Long runs meet their
keys block by block, so queries and keys are rotated once beforehand. A head of 80 columns is done as 64 + 16.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.attention.triton.attend import (
    LOG2_E,
    LOWEST,
    normalised,
    precision,
    softmax_step,
    supports_head,
    turned,
)
from infinitevl.ops.attention.vision import Segments

SHORT = 64  # patches of a run that is one tile


class Tiles(NamedTuple):
    """How a kernel divides its work: `patches` queries meet `keys` keys at a time."""

    patches: int
    keys: int
    warps: int
    stages: int


def supports(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernels here can do this head width; they raise ValueError where they cannot."""
    return supports_head(head_dim, dtype)


def vision_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, segments: Sequence[Segments], *, tiles: Tiles | None = None
) -> Tensor:
    """Every patch attends to its run.

    Args:
        qkv: [N, 3, H, D], queries, keys and values, not yet rotated, any strides but the last.
        cos, sin: float32 [N, D].
        segments: runs that together hold each of the N patches once.
        tiles: another division of the work than the built-in one.

    Returns:
        [N, H, D].
    """
    patches, _, heads, dim = qkv.shape
    if not supports(dim, qkv.dtype):
        raise ValueError(f"no vision kernel for heads of width {dim} in {qkv.dtype}")
    assert qkv.stride(3) == 1 and cos.stride() == sin.stride() == (dim, 1)
    out = torch.empty(patches, heads, dim, dtype=qkv.dtype, device=qkv.device)
    q, k, v = qkv.unbind(1)
    rotates = all(part.size <= SHORT for part in segments)
    if not rotates:
        q, k = _rotate(qkv, cos, sin).unbind(1)
    for part in segments:
        _attend(q, k, v, cos, sin, part, out, tiles or _tiles(part.size, dim, qkv.dtype), rotates)
    return out


def _tiles(size: int, dim: int, dtype: torch.dtype) -> Tiles:
    """How runs of `size` patches are divided."""
    whole = max(16, triton.next_power_of_2(size))
    if dtype == torch.float32 or dim > 128:
        return Tiles(min(whole, 32), min(whole, 32), 4, 1)
    if size <= SHORT:
        # With 4 warps triton 3.6 makes wrong code for tiles of 64 x 64 in bfloat16: NaN on an H200.
        return Tiles(whole, whole, 8 if whole == 64 else 4, 1)
    return Tiles(128, 64, 8, 3)


def _columns(dim: int) -> dict[str, int]:
    """A head's columns as a power of two and a rest, each at least the 16 that a product needs."""
    main = max(16, 1 << (dim.bit_length() - 1))
    rest = max(16, triton.next_power_of_2(dim - main)) if dim > main else 0
    return {"D": dim, "MAIN": main, "REST": rest}


def _rotate(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotated queries and keys, contiguous: [N, 2, H, D]."""
    patches, _, heads, dim = qkv.shape
    out = torch.empty(patches, 2, heads, dim, dtype=qkv.dtype, device=qkv.device)
    _rotate_kernel[(patches,)](
        *(qkv, cos, sin, out, *qkv.stride()[:3]), H=heads, D=dim, WIDTH=triton.next_power_of_2(dim)
    )
    return out


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    part: Segments,
    out: Tensor,
    tiles: Tiles,
    rotates: bool,
) -> None:
    patches, heads, dim = out.shape
    runs = (patches if part.index is None else part.index.numel()) // part.size
    assert q.stride() == k.stride()
    _attend_kernel[(triton.cdiv(part.size, tiles.patches), heads, runs)](
        *(q, k, v, cos, sin, part.index, out, part.size),
        *(q.stride(0), q.stride(1), v.stride(0), v.stride(1), dim**-0.5 * LOG2_E),
        H=heads,
        **_columns(dim),
        BLOCK_Q=tiles.patches,
        BLOCK_K=tiles.keys,
        ROTATES=rotates,
        EVEN=part.size % tiles.patches == 0 and part.size % tiles.keys == 0,
        PRECISION=precision(q),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


@triton.jit
def _rotate_kernel(
    qkv, cos, sin, out, qkv_n, qkv_c, qkv_h, H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Queries and keys of one patch."""
    n = tl.program_id(0).to(tl.int64)
    line = tl.arange(0, triton.next_power_of_2(2 * H))[:, None]
    dims = tl.arange(0, WIDTH)[None]
    real = (line < 2 * H) & (dims < D)
    x = qkv + n * qkv_n + line // H * qkv_c + line % H * qkv_h
    tl.store(out + (n * 2 * H + line) * D + dims, turned(x, line * 0 + n * D, cos, sin, dims, real, D), real)


@triton.jit
def _places(index, run, start, size, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """Where patches start .. start + BLOCK of a run lie, int64 [BLOCK], and which of them exist."""
    inside = start + tl.arange(0, BLOCK)
    exists = inside < size
    place = run * size + inside
    if index is not None:
        place = tl.load(index + place, exists, other=0)
    return place, exists


@triton.jit
def _columns_of(x, place, stride, exists, cos, sin, FROM: tl.constexpr, COUNT: tl.constexpr, D: tl.constexpr,
                EVEN: tl.constexpr, ROTATES: tl.constexpr):  # fmt: skip
    """Columns FROM .. FROM + COUNT of the patches at `place`, zeros where there are none: [BLOCK, COUNT]."""
    dims = FROM + tl.arange(0, COUNT)[None]
    lines = place[:, None]
    if ROTATES:
        tile = turned(x + lines * stride, lines * D, cos, sin, dims, exists[:, None] & (dims < D), D)
    else:
        if EVEN and FROM + COUNT <= D:
            tile = tl.load(x + lines * stride + dims)
        elif EVEN:
            tile = tl.load(x + lines * stride + dims, dims < D, other=0.0)
        else:
            tile = tl.load(x + lines * stride + dims, exists[:, None] & (dims < D), other=0.0)
    return tile


@triton.jit
def _attend_kernel(
    q, k, v, cos, sin, index, out, size, qk_n, qk_h, v_n, v_h, scale,
    H: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, ROTATES: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head meets all keys of its run; columns MAIN and REST apart."""
    head, run = tl.program_id(1), tl.program_id(2).to(tl.int64)
    q += head * qk_h
    k += head * qk_h
    v += head * v_h
    place, exists = _places(index, run, tl.program_id(0) * BLOCK_Q, size, BLOCK_Q, EVEN)
    q_main = _columns_of(q, place, qk_n, exists, cos, sin, 0, MAIN, D, EVEN, ROTATES)
    acc = tl.zeros([BLOCK_Q, MAIN], tl.float32)
    top = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    if REST > 0:
        q_rest = _columns_of(q, place, qk_n, exists, cos, sin, MAIN, REST, D, EVEN, ROTATES)
        acc_rest = tl.zeros([BLOCK_Q, REST], tl.float32)
    for start in range(0, size, BLOCK_K):
        at, real = _places(index, run, start, size, BLOCK_K, EVEN)
        k_main = _columns_of(k, at, qk_n, real, cos, sin, 0, MAIN, D, EVEN, ROTATES)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision=PRECISION)
        if REST > 0:
            k_rest = _columns_of(k, at, qk_n, real, cos, sin, MAIN, REST, D, EVEN, ROTATES)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=PRECISION)
        weights, fade, top, total = softmax_step(scores, real[None], top, total, scale, not EVEN)
        weights = weights.to(v.dtype.element_ty)
        v_main = _columns_of(v, at, v_n, real, cos, sin, 0, MAIN, D, EVEN, False)
        acc = tl.dot(weights, v_main, acc * fade[:, None], input_precision=PRECISION)
        if REST > 0:
            v_rest = _columns_of(v, at, v_n, real, cos, sin, MAIN, REST, D, EVEN, False)
            acc_rest = tl.dot(weights, v_rest, acc_rest * fade[:, None], input_precision=PRECISION)
    lines = out + ((place * H + head) * D)[:, None]
    dims = tl.arange(0, MAIN)[None]
    mean, _ = normalised(acc, top, total)
    tl.store(lines + dims, mean.to(out.dtype.element_ty), exists[:, None] & (dims < D))
    if REST > 0:
        dims = MAIN + tl.arange(0, REST)[None]
        mean, _ = normalised(acc_rest, top, total)
        tl.store(lines + dims, mean.to(out.dtype.element_ty), exists[:, None] & (dims < D))
