"""What all attention kernels share: rotation on load, the running softmax, and merging of splits.

Scores are in units of log2, so that exp2 serves. A row's running maximum starts at a finite LOWEST: a row
that has seen no key yet has weights of exactly zero, never NaN.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
LOWEST = tl.constexpr(-1e30)
FEW_SPLITS = tl.constexpr(8)


@triton.jit
def turned(x, angle, cos, sin, dims, real, HEAD_DIM: tl.constexpr):
    """Rotary embedding of rows that are loaded here, in float32, rounded to their dtype: [R, dims].

    Args:
        x: pointers [R, 1] to the rows. angle: offsets [R, 1] of their angles in cos and sin.
        dims: [1, dims], the columns wanted. real: bool, which of [R, dims] exist.
    """
    half: tl.constexpr = HEAD_DIM // 2
    own = tl.load(x + dims, real, other=0.0)
    other = tl.load(x + (dims + half) % HEAD_DIM, real, other=0.0).to(tl.float32)
    c = tl.load(cos + angle + dims, real, other=0.0)
    s = tl.load(sin + angle + dims, real, other=0.0)
    return (own.to(tl.float32) * c + tl.where(dims < half, -other, other) * s).to(own.dtype)


@triton.jit
def softmax_step(scores, seen, top, total, scale, MASKED: tl.constexpr):
    """One block of keys: weights [R, keys], the factor by which older sums fade, and the new sums.

    Args:
        scores: float32 [R, keys], raw products. seen: bool, which of them count (only if MASKED).
        top, total: float32 [R], running maximum (scaled) and sum of weights. scale: to units of log2.
    """
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new_top[:, None])
    fade = tl.exp2(top - new_top)
    return weights, fade, new_top, total * fade + tl.sum(weights, 1)


@triton.jit
def absorb(q, k, v, seen, acc, top, total, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Queries [R, D] meet keys and values [keys, D]: the new acc [R, D], top and total."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    weights, fade, top, total = softmax_step(scores, seen, top, total, scale, MASKED)
    acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    return acc, top, total


@triton.jit
def normalised(acc, top, total):
    """The mean of the values, and log2 of the sum of weights; zeros and LOWEST where no key was seen."""
    safe = tl.where(total > 0.0, total, 1.0)
    return acc / safe[:, None], tl.where(total > 0.0, top + tl.log2(safe), LOWEST)


@triton.jit
def merge(parts, sums, out, first, num_rows, SPLITS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """Rows first .. first + ROWS of out [num_rows, D] from parts [SPLITS, num_rows, D] and their sums."""
    if SPLITS <= FEW_SPLITS:
        _merge_few(parts, sums, out, first, num_rows, SPLITS, ROWS, D)
    else:
        _merge_many(parts, sums, out, first, num_rows, SPLITS, ROWS, D)


@triton.jit
def _merge_few(parts, sums, out, first, num_rows, SPLITS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """One split after the other: no thread needs what another one has."""
    row = first + tl.arange(0, ROWS)
    dims = tl.arange(0, triton.next_power_of_2(D))[None]
    real = row < num_rows
    wanted = real[:, None] & (dims < D)
    top = tl.full([ROWS], LOWEST, tl.float32)
    for split in tl.static_range(SPLITS):
        top = tl.maximum(top, tl.load(sums + split * num_rows + row, real, other=LOWEST))
    total = tl.zeros([ROWS], tl.float32)
    merged = tl.zeros([ROWS, dims.shape[1]], tl.float32)
    for split in tl.static_range(SPLITS):
        weight = tl.exp2(tl.load(sums + split * num_rows + row, real, other=LOWEST) - top)
        place = (split * num_rows + row).to(tl.int64)[:, None] * D + dims
        total += weight
        merged += weight[:, None] * tl.load(parts + place, wanted, other=0.0)
    target = out + row.to(tl.int64)[:, None] * D + dims
    tl.store(target, (merged / total[:, None]).to(out.dtype.element_ty), wanted)


@triton.jit
def _merge_many(parts, sums, out, first, num_rows, SPLITS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """All splits at once."""
    padded: tl.constexpr = triton.next_power_of_2(SPLITS)
    width: tl.constexpr = triton.next_power_of_2(D)
    split = tl.arange(0, padded)[:, None]
    row = first + tl.arange(0, ROWS)
    dims = tl.arange(0, width)[None, None]
    real = (split < SPLITS) & (row < num_rows)[None]
    place = split * num_rows + row[None]
    log_sums = tl.load(sums + place, real, other=LOWEST)
    weights = tl.exp2(log_sums - tl.max(log_sums, 0)[None])
    weights = weights / tl.sum(weights, 0)[None]
    wanted = real[:, :, None] & (dims < D)
    values = tl.load(parts + place.to(tl.int64)[:, :, None] * D + dims, wanted, other=0.0)
    merged = tl.sum(values * weights[:, :, None], 0)
    cols = tl.arange(0, width)[None]
    target = out + row.to(tl.int64)[:, None] * D + cols
    tl.store(target, merged.to(out.dtype.element_ty), (row < num_rows)[:, None] & (cols < D))


def merged_rows(splits: int) -> int:
    """Rows that one program merges: of many splits as few as it has room for."""
    return 8 if splits <= FEW_SPLITS.value else max(1, 32 // triton.next_power_of_2(splits))


def precision(x: Tensor) -> str:
    """How float32 operands are multiplied: exactly. Other dtypes have one way only."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def supports_head(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernels know this head width and dtype."""
    return (
        head_dim % 2 == 0 and 2 <= head_dim <= 256 and dtype in (torch.float32, torch.bfloat16, torch.float16)
    )


def num_programs(x: Tensor) -> int:
    """Multiprocessors to keep busy."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 132
