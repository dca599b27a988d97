"""Gated DeltaNet for many tokens, what needs no recurrent state: all chunks of 64 tokens at once.

A chunk leaves its convolved queries, keys and values, the inverse of its unit lower triangular matrix, and
what its tokens read of each other, all as the scan of `delta_chunk` multiplies with it.

bfloat16 queries, keys and values stay bfloat16 (norms and decays are applied to products), and whatever is
float32 (state, inverse, written values) meets them as the sum of two bfloat16 numbers: 16 bits, at the price
of one product in tf32, which has 11.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.delta_net.triton.inverse import merge_pairs_, solve_, store_inverse, store_split
from infinitevl.ops.delta_net.triton.parts import count, load_taps, log_decay_of, product, row_of, tap_of
from infinitevl.ops.early import launches_early

SIZE = 64  # tokens of a chunk


@dataclass(frozen=True)
class ChunkTuning:
    """How the work is cut: value columns of one program, its warps and stages; results agree to rounding.

    float32 names the precision of products when activations are float32 (`tl.dot`'s input_precision).
    convolve_first: in a launch of its own, `channels` a program. brief: the state and written values are
    rounded to bfloat16 once in the scan's products, not kept as the sum of two.
    """

    prepare_block_v: int = 128
    prepare_warps: int = 8
    block_v: int = 64
    warps: int = 4
    stages: int = 2
    float32: str = "tf32x3"
    convolve_first: bool = False
    channels: int = 64
    brief: bool = True


# Measured on an H200 with 16 heads of 128 x 256 and 256 tokens a row. A limit of registers (maxnreg=128 with
# 4 warps) made the second one faster, and its inverse wrong with heads of 64 x 128, where ptxas 12.8 spills.
FEW_CHUNKS = ChunkTuning()
MANY_CHUNKS = ChunkTuning(convolve_first=True, stages=1)


class Chunks(NamedTuple):
    """Prepared chunks; K and V padded to powers of two. N is their number.

    Args:
        keys: [B, H, N, 2, SIZE, K], queries then keys, not normalised.
        values: [B, H, N, SIZE, V].
        squares: [B, H, N, 2, P, SIZE, SIZE], inverse and inner products as P = 2 bfloat16 or one float32.
        scales: float32 [B, H, N, 5, SIZE], per token: of query @ state, of key @ state, of what is written,
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
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    recurrent_state: Tensor,
    conv_state: Tensor,
    rows: Tensor | None,
    num_valid: Tensor | None,
    tuning: ChunkTuning,
) -> Chunks:
    """Arguments as `delta_net_chunk_`; recurrent_state gives sizes only, conv_state is only read."""
    batch, length = mixed.shape[:2]
    _, heads, key_width, value_width = recurrent_state.shape
    wide_k, wide_v = (max(16, triton.next_power_of_2(width)) for width in (key_width, value_width))
    num_chunks, block_v = triton.cdiv(length, SIZE), min(tuning.prepare_block_v, wide_v)
    split, early = mixed.dtype == torch.bfloat16, launches_early(mixed)
    place = (batch, heads, num_chunks)
    chunks = Chunks(
        mixed.new_empty(*place, 2, SIZE, wide_k),
        mixed.new_empty(*place, SIZE, wide_v),
        mixed.new_empty(*place, 2, 1 + split, SIZE, SIZE),
        recurrent_state.new_empty(*place, 5, SIZE),
        "split" if split else tuning.float32,
    )
    inputs = mixed, a, b, conv_weight, A_log, dt_bias, conv_state, rows, num_valid
    strides = *mixed.stride()[:2], *a.stride(), *b.stride(), conv_state.stride(0)
    work = recurrent_state.new_empty(*place, SIZE, SIZE)
    sizes = {"H": heads, "K": key_width, "V": value_width, "BK": wide_k, "WIDE_V": wide_v, "SIZE": SIZE}
    common = sizes | {"EARLY": early, "launch_pdl": early}
    kinds = {"PRECISION": chunks.precision}
    if not tuning.convolve_first:
        _prepare[(num_chunks, heads * (1 + triton.cdiv(value_width, block_v)), batch)](
            *inputs, *chunks[:4], work, length, *strides, **common, **kinds, W=conv_weight.shape[1],
            BV=block_v, num_warps=tuning.prepare_warps,
        )  # fmt: skip
        return chunks
    block_c = min(tuning.channels, wide_k, wide_v)
    _convolve[(num_chunks, heads * (2 * wide_k + wide_v) // block_c, batch)](
        mixed, conv_weight, conv_state, rows, chunks.keys, chunks.values, length, *mixed.stride()[:2],
        conv_state.stride(0), **common, W=conv_weight.shape[1], BC=block_c, num_warps=4,
    )  # fmt: skip
    _relate[(num_chunks, 2 * heads, batch)](
        a, b, A_log, dt_bias, num_valid, *chunks[:4], work, length, *a.stride(), *b.stride(),
        **common, **kinds, num_warps=tuning.prepare_warps,
    )  # fmt: skip
    return chunks


@triton.jit(do_not_specialize=["T"])
def _prepare(
    mixed, a, b, conv_weight, A_log, dt_bias, conv_state, rows, num_valid, keys, values, squares, scales,
    work, T, mixed_row, mixed_token, a_row, a_token, a_head, b_row, b_token, b_head, conv_row,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BK: tl.constexpr,
    WIDE_V: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
    BV: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, heads then value blocks of heads, rows): two kinds of programs that share nothing."""
    if EARLY:  # the scan may fetch the recurrent state as soon as no earlier kernel still changes it
        gdc_wait()
        gdc_launch_dependents()
    chunk, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_chunks = tl.num_programs(0)
    first = chunk * SIZE
    mixed += batch.to(tl.int64) * mixed_row + first.to(tl.int64) * mixed_token
    conv_state += row_of(rows, batch) * conv_row
    C: tl.constexpr = H * (2 * K + V)
    if part < H:
        head = part
        place = (batch.to(tl.int64) * H + head) * num_chunks + chunk
        a += batch.to(tl.int64) * a_row + head * a_head
        b += batch.to(tl.int64) * b_row + head * b_head
        valid = count(num_valid, batch, T)
        log_decay, sums = _decays(a, A_log + head, dt_bias + head, first, valid, a_token, SIZE)
        beta = _strengths(b, first, valid, b_token, SIZE)
        width = tl.arange(0, BK)
        inside = tl.arange(0, SIZE)[:, None] * BK + width[None, :]
        q_place = keys + 2 * place * SIZE * BK + inside
        k_place = q_place + SIZE * BK
        channel = head * K + width
        q = _conv_silu(mixed, conv_state, conv_weight, channel, width < K, first, T, mixed_token, C, W, SIZE)
        k = _conv_silu(
            mixed, conv_state, conv_weight, channel + H * K, width < K, first, T, mixed_token, C, W, SIZE
        )
        tl.store(q_place, q)
        tl.store(k_place, k)
        # Read again: as operands of products they need another layout, in which all of the above would be
        # computed once more.
        tl.debug_barrier()
        q, k = tl.load(q_place), tl.load(k_place)
        squares += 2 * place * (2 if PRECISION == "split" else 1) * SIZE * SIZE
        scale_place = scales + place * 5 * SIZE + tl.arange(0, SIZE)
        norm_k = _norm(k)
        work += place * SIZE * SIZE
        _relate_queries(q, k, norm_k, sums, squares, scale_place, K, SIZE, PRECISION)
        _relate_keys(k, norm_k, sums, log_decay, beta, squares, scale_place, work, SIZE, PRECISION)
    else:
        blocks: tl.constexpr = (V + BV - 1) // BV
        head, block = (part - H) // blocks, (part - H) % blocks
        values += ((batch.to(tl.int64) * H + head) * num_chunks + chunk) * SIZE * WIDE_V
        column = block * BV + tl.arange(0, BV)
        v_channel = 2 * H * K + head * V + column
        v = _conv_silu(
            mixed, conv_state, conv_weight, v_channel, column < V, first, T, mixed_token, C, W, SIZE
        )
        tl.store(values + tl.arange(0, SIZE)[:, None] * WIDE_V + column[None, :], v)


@triton.jit(do_not_specialize=["T"])
def _convolve(
    mixed, conv_weight, conv_state, rows, keys, values, T, mixed_row, mixed_token, conv_row,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BK: tl.constexpr,
    WIDE_V: tl.constexpr, SIZE: tl.constexpr, EARLY: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, blocks of BC channels of heads, rows): queries, keys and values of a head."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    chunk, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    PARTS: tl.constexpr = (2 * BK + WIDE_V) // BC
    head, start = part // PARTS, part % PARTS * BC
    place = (batch.to(tl.int64) * H + head) * tl.num_programs(0) + chunk
    first = chunk * SIZE
    mixed += batch.to(tl.int64) * mixed_row + first.to(tl.int64) * mixed_token
    conv_state += row_of(rows, batch) * conv_row
    C: tl.constexpr = H * (2 * K + V)
    token = tl.arange(0, SIZE)[:, None]
    if start < 2 * BK:
        kind, column = start // BK, start % BK + tl.arange(0, BC)
        channel = (kind * H + head) * K + column
        x = _conv_silu(mixed, conv_state, conv_weight, channel, column < K, first, T, mixed_token, C, W, SIZE)
        tl.store(keys + (2 * place + kind) * SIZE * BK + token * BK + column[None, :], x)
    else:
        column = start - 2 * BK + tl.arange(0, BC)
        channel = 2 * H * K + head * V + column
        x = _conv_silu(mixed, conv_state, conv_weight, channel, column < V, first, T, mixed_token, C, W, SIZE)
        tl.store(values + place * SIZE * WIDE_V + token * WIDE_V + column[None, :], x)


@triton.jit(do_not_specialize=["T"])
def _relate(
    a, b, A_log, dt_bias, num_valid, keys, values, squares, scales, work, T,
    a_row, a_token, a_head, b_row, b_token, b_head,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, WIDE_V: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, heads' keys then heads' queries, rows)."""
    if EARLY:  # the scan may fetch the recurrent state as soon as no earlier kernel still changes it
        gdc_wait()
        gdc_launch_dependents()
    chunk, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head, first = part % H, chunk * SIZE
    place = (batch.to(tl.int64) * H + head) * tl.num_programs(0) + chunk
    a += batch.to(tl.int64) * a_row + head * a_head
    valid = count(num_valid, batch, T)
    log_decay, sums = _decays(a, A_log + head, dt_bias + head, first, valid, a_token, SIZE)
    inside = tl.arange(0, SIZE)[:, None] * BK + tl.arange(0, BK)[None, :]
    keys += 2 * place * SIZE * BK
    k = tl.load(keys + SIZE * BK + inside)
    norm_k = _norm(k)
    squares += 2 * place * (2 if PRECISION == "split" else 1) * SIZE * SIZE
    scale_place = scales + place * 5 * SIZE + tl.arange(0, SIZE)
    if part < H:
        beta = _strengths(b + batch.to(tl.int64) * b_row + head * b_head, first, valid, b_token, SIZE)
        work += place * SIZE * SIZE
        _relate_keys(k, norm_k, sums, log_decay, beta, squares, scale_place, work, SIZE, PRECISION)
    else:
        q = tl.load(keys + inside)
        _relate_queries(q, k, norm_k, sums, squares, scale_place, K, SIZE, PRECISION)


@triton.jit
def _decays(a, A_log, dt_bias, first, valid, stride, SIZE: tl.constexpr):
    """Logarithms of the decays of a chunk's tokens, zero where none counts, and their sums in float64."""
    token = first + tl.arange(0, SIZE)
    here = tl.load(a + token.to(tl.int64) * stride, mask=token < valid, other=0.0).to(tl.float32)
    logs = log_decay_of(here, tl.load(A_log).to(tl.float32), tl.load(dt_bias).to(tl.float32))
    logs = tl.where(token < valid, logs, 0.0)
    return logs, tl.cumsum(logs.to(tl.float64), 0)


@triton.jit
def _strengths(b, first, valid, stride, SIZE: tl.constexpr):
    """How strongly a chunk's tokens write, zero where none counts."""
    token = first + tl.arange(0, SIZE)
    here = tl.load(b + token.to(tl.int64) * stride, mask=token < valid, other=0.0).to(tl.float32)
    return tl.where(token < valid, tl.sigmoid(here), 0.0)


@triton.jit
def _conv_silu(
    mixed, conv_state, conv_weight, channel, keep, first, T, stride,
    C: tl.constexpr, W: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """SiLU of the convolution, [SIZE, channels] in mixed's dtype; mixed points to token `first`."""
    dtype = mixed.dtype.element_ty
    total = tl.zeros((SIZE, channel.shape[0]), tl.float32)
    weights = load_taps(conv_weight, channel, keep, W, dtype)
    for w in tl.static_range(W):
        shifted = tl.arange(0, SIZE)[:, None] + (w - W + 1)
        token = first + shifted
        new, old = (
            mixed + shifted * stride + channel[None, :],
            conv_state + (token + W - 1) * C + channel[None, :],
        )
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
    """Store how queries [SIZE, K] meet the keys of their chunk and the recurrent state before it."""
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
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store how keys [SIZE, K] meet each other and the recurrent state before them."""
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
    solve_(work, 16, SIZE)
    merge_pairs_(work, 16, SIZE, PRECISION)
    store_inverse(work, squares, SIZE, PRECISION)
