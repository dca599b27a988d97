"""Gated DeltaNet for many tokens, what needs no memory: all chunks of 64 tokens at once.

A chunk leaves its convolved queries, keys and values, the inverse of its unit lower triangular matrix, and
what its tokens read of each other, all as the scan of `delta_chunk` multiplies with it.

bfloat16 queries, keys and values stay bfloat16 (norms and decays are applied to products), and whatever is
float32 (memory, inverse, written values) meets them as the sum of two bfloat16 numbers: 16 bits, at the price
of one product in tf32, which has 11.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.triton.delta_inverse import invert_, merge_pairs_, solve_, store_inverse, store_split
from infinitevl.ops.triton.delta_parts import count, load_taps, log_decay_of, product, row_of, tap_of
from infinitevl.ops.triton.early import launches_early

SIZE = 64  # tokens of a chunk


@dataclass(frozen=True)
class ChunkTuning:
    """How the work is cut: value columns of one program, its warps and stages; results agree to rounding.

    float32 names the precision of products when activations are float32 (`tl.dot`'s input_precision).
    apart: queries in programs of their own, which convolve the keys once more. in_registers: rows of the
    inverse stay there. brief: memory and written values are rounded to bfloat16 in the scan's products.
    """

    prepare_block_v: int = 128
    prepare_warps: int = 8
    block_v: int = 64
    warps: int = 4
    stages: int = 2
    float32: str = "tf32x3"
    apart: bool = False
    in_registers: bool = False
    brief: bool = False


class Chunks(NamedTuple):
    """Prepared chunks; K and V padded to powers of two. N is their number.

    Args:
        keys: [B, H, N, 2, SIZE, K], queries then keys, not normalised.
        values: [B, H, N, SIZE, V].
        squares: [B, H, N, 2, P, SIZE, SIZE], inverse and inner products as P = 2 bfloat16 or one float32.
        scales: float32 [B, H, N, 5, SIZE], per token: of query @ memory, of key @ memory, of what is written,
            the decay over the whole chunk, and of the value.
        precision: "split" for bfloat16 activations, else `tl.dot`'s input_precision.
    """

    keys: Tensor
    values: Tensor
    squares: Tensor
    scales: Tensor
    precision: str


def prepare(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    taps: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    memory: Tensor,
    tail: Tensor,
    rows: Tensor | None,
    num_valid: Tensor | None,
    tuning: ChunkTuning,
) -> Chunks:
    """Arguments as `delta_net_chunk_`; memory gives sizes only, and tail is only read."""
    batch, length = mixed.shape[:2]
    _, heads, key_width, value_width = memory.shape
    wide_k, wide_v = (max(16, triton.next_power_of_2(width)) for width in (key_width, value_width))
    num_chunks, block_v = triton.cdiv(length, SIZE), min(tuning.prepare_block_v, wide_v)
    split, early = mixed.dtype == torch.bfloat16, launches_early(mixed)
    place = (batch, heads, num_chunks)
    chunks = Chunks(
        mixed.new_empty(*place, 2, SIZE, wide_k),
        mixed.new_empty(*place, SIZE, wide_v),
        mixed.new_empty(*place, 2, 1 + split, SIZE, SIZE),
        memory.new_empty(*place, 5, SIZE),
        "split" if split else tuning.float32,
    )
    kinds = heads * (1 + tuning.apart)
    _prepare[(num_chunks, kinds + heads * triton.cdiv(value_width, block_v), batch)](
        mixed, a, b, taps, A_log, dt_bias, tail, rows, num_valid, *chunks[:4],
        memory.new_empty(*place, SIZE, SIZE), mixed.new_empty(*place, SIZE, wide_k) if tuning.apart else None,
        length, *mixed.stride()[:2], *a.stride(), *b.stride(), tail.stride(0),
        H=heads, K=key_width, V=value_width, W=taps.shape[1], BK=wide_k, WIDE_V=wide_v, SIZE=SIZE,
        PRECISION=chunks.precision, EARLY=early, BV=block_v, IN_REGISTERS=tuning.in_registers,
        num_warps=tuning.prepare_warps, launch_pdl=early,
    )  # fmt: skip
    return chunks


@triton.jit(do_not_specialize=["T"])
def _prepare(
    mixed, a, b, taps, A_log, dt_bias, tail, rows, num_valid, keys, values, squares, scales, work, spare, T,
    mixed_row, mixed_token, a_row, a_token, a_head, b_row, b_token, b_head, tail_row,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BK: tl.constexpr,
    WIDE_V: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
    BV: tl.constexpr, IN_REGISTERS: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, heads then heads' queries if apart then value blocks of heads, rows).

    Two or three kinds of programs that share nothing.
    """
    if EARLY:  # the scan may fetch the memory as soon as nobody before this kernel still changes it
        gdc_wait()
        gdc_launch_dependents()
    chunk, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_chunks = tl.num_programs(0)
    first = chunk * SIZE
    mixed += batch.to(tl.int64) * mixed_row + first.to(tl.int64) * mixed_token
    tail += row_of(rows, batch) * tail_row
    C: tl.constexpr = H * (2 * K + V)
    KINDS: tl.constexpr = 1 if spare is None else 2
    if part < KINDS * H:
        head = part % H
        place = (batch.to(tl.int64) * H + head) * num_chunks + chunk
        counts = first + tl.arange(0, SIZE) < count(num_valid, batch, T)
        a += batch.to(tl.int64) * a_row + first.to(tl.int64) * a_token + head * a_head
        a_here = tl.load(a + tl.arange(0, SIZE) * a_token, mask=counts, other=0.0).to(tl.float32)
        log_A, bias = tl.load(A_log + head).to(tl.float32), tl.load(dt_bias + head).to(tl.float32)
        b += batch.to(tl.int64) * b_row + first.to(tl.int64) * b_token + head * b_head
        b_here = tl.load(b + tl.arange(0, SIZE) * b_token, mask=counts, other=0.0).to(tl.float32)
        width = tl.arange(0, BK)
        inside = tl.arange(0, SIZE)[:, None] * BK + width[None, :]
        q_place = keys + 2 * place * SIZE * BK + inside
        k_place = q_place + SIZE * BK
        if KINDS == 2 and part >= H:  # its own copy: no two programs write to one place
            k_place = spare + place * SIZE * BK + inside
        channel = head * K + width
        k = _conv_silu(mixed, tail, taps, channel + H * K, width < K, first, T, mixed_token, C, W, SIZE)
        tl.store(k_place, k)
        if (KINDS == 1) | (part >= H):
            q = _conv_silu(mixed, tail, taps, channel, width < K, first, T, mixed_token, C, W, SIZE)
            tl.store(q_place, q)
        log_decay = tl.where(counts, log_decay_of(a_here, log_A, bias), 0.0)
        sums = tl.cumsum(log_decay.to(tl.float64), 0)
        # Read again: as operands of products they need another layout, in which all of the above would be
        # computed once more.
        tl.debug_barrier()
        k = tl.load(k_place)
        norm_k = _norm(k)
        squares += 2 * place * (2 if PRECISION == "split" else 1) * SIZE * SIZE
        scale_place = scales + place * 5 * SIZE + tl.arange(0, SIZE)
        if (KINDS == 1) | (part >= H):
            _relate_queries(tl.load(q_place), k, norm_k, sums, squares, scale_place, K, SIZE, PRECISION)
        if (KINDS == 1) | (part < H):
            beta = tl.where(counts, tl.sigmoid(b_here), 0.0)
            work += place * SIZE * SIZE
            _relate_keys(
                k, norm_k, sums, log_decay, beta, squares, scale_place, work, SIZE, PRECISION, IN_REGISTERS
            )
    else:
        blocks: tl.constexpr = (V + BV - 1) // BV
        head, block = (part - KINDS * H) // blocks, (part - KINDS * H) % blocks
        values += ((batch.to(tl.int64) * H + head) * num_chunks + chunk) * SIZE * WIDE_V
        column = block * BV + tl.arange(0, BV)
        v_channel = 2 * H * K + head * V + column
        v = _conv_silu(mixed, tail, taps, v_channel, column < V, first, T, mixed_token, C, W, SIZE)
        tl.store(values + tl.arange(0, SIZE)[:, None] * WIDE_V + column[None, :], v)


@triton.jit
def _conv_silu(
    mixed, tail, taps, channel, keep, first, T, stride,
    C: tl.constexpr, W: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """SiLU of the convolution, [SIZE, channels] in mixed's dtype; mixed points to token `first`."""
    dtype = mixed.dtype.element_ty
    total = tl.zeros((SIZE, channel.shape[0]), tl.float32)
    weights = load_taps(taps, channel, keep, W, dtype)
    for w in tl.static_range(W):
        shifted = tl.arange(0, SIZE)[:, None] + (w - W + 1)
        token = first + shifted
        new, old = mixed + shifted * stride + channel[None, :], tail + (token + W - 1) * C + channel[None, :]
        x = tl.load(tl.where(token < 0, old, new), mask=(token < T) & keep[None, :], other=0.0)
        total += x.to(tl.float32) * tap_of(weights, w)[None, :]
    return (total * tl.sigmoid(total)).to(dtype)


@triton.jit
def _norm(x):
    """1 / length of each row of x."""
    wide = x.to(tl.float32)
    return tl.rsqrt(tl.sum(wide * wide, 1) + 1e-6)


@triton.jit
def _decay(sums, SIZE: tl.constexpr):
    """From token to token [SIZE, SIZE], zero forwards; sums of logarithms, float64 [SIZE].

    Differences of running sums of the logarithms are as good as sums over the segment here: the sums are
    float64, kept as two float32.
    """
    token = tl.arange(0, SIZE)
    high = sums.to(tl.float32)
    low = (sums - high.to(tl.float64)).to(tl.float32)
    since = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    return tl.where(token[:, None] >= token[None, :], tl.exp(tl.minimum(since, 0.0)), 0.0)


@triton.jit
def _relate_queries(
    q, k, norm_k, sums, squares, scales, K: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr
):
    """Store how queries [SIZE, K] meet the keys of their chunk and the memory before it."""
    token = tl.arange(0, SIZE)
    norm_q = _norm(q) * (K**-0.5)
    zero = tl.zeros((SIZE, SIZE), tl.float32)
    inner = product(q, tl.trans(k), zero, PRECISION) * _decay(sums, SIZE) * norm_q[:, None] * norm_k[None, :]
    parts: tl.constexpr = 2 if PRECISION == "split" else 1
    square = token[:, None] * SIZE + token[None, :]
    store_split(squares + parts * SIZE * SIZE + square, inner, SIZE * SIZE, PRECISION)
    tl.store(scales, tl.exp(sums.to(tl.float32)) * norm_q)


@triton.jit
def _relate_keys(
    k, norm_k, sums, log_decay, beta, squares, scales, work,
    SIZE: tl.constexpr, PRECISION: tl.constexpr, IN_REGISTERS: tl.constexpr,
):  # fmt: skip
    """Store how keys [SIZE, K] meet each other and the memory before them."""
    token = tl.arange(0, SIZE)
    total = tl.sum(log_decay.to(tl.float64), 0)
    start = tl.exp(sums.to(tl.float32))
    tl.store(scales + SIZE, start * norm_k * beta)
    tl.store(scales + 2 * SIZE, tl.exp(tl.minimum((total - sums).to(tl.float32), 0.0)) * norm_k)
    tl.store(scales + 3 * SIZE, tl.exp(total.to(tl.float32)) + tl.zeros((SIZE,), tl.float32))
    tl.store(scales + 4 * SIZE, beta)
    zero = tl.zeros((SIZE, SIZE), tl.float32)
    met = product(k, tl.trans(k), zero, PRECISION) * _decay(sums, SIZE)
    met *= (norm_k * beta)[:, None] * norm_k[None, :]
    square = token[:, None] * SIZE + token[None, :]
    tl.store(work + square, tl.where(token[:, None] > token[None, :], met, 0.0))
    tl.debug_barrier()
    if IN_REGISTERS:
        solve_(work, 16, SIZE)
        merge_pairs_(work, 16, SIZE, PRECISION)
        store_inverse(work, squares, SIZE, PRECISION)
    else:
        invert_(work, SIZE, PRECISION)
        store_split(squares + square, tl.load(work + square), SIZE * SIZE, PRECISION)
