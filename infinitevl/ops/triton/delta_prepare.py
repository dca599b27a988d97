"""Gated DeltaNet for many tokens, what needs no memory: all chunks of 64 tokens at once.

A chunk leaves its convolved queries, keys and values, the inverse of its unit lower triangular matrix, and
what its tokens read of each other, all as the scan of `delta_chunk` multiplies with it.

bfloat16 queries, keys and values stay bfloat16 (norms and decays are applied to products), and whatever is
float32 (memory, inverse, written values) meets them as the sum of two bfloat16 numbers: 16 bits, at the price
of one product in tf32, which has 11.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.triton.delta_parts import count, halves, load_taps, log_decay_of, product, row_of, tap_of
from infinitevl.ops.triton.early import launches_early

SIZE = 64  # tokens of a chunk


class Chunks(NamedTuple):
    """Prepared chunks; K and V padded to powers of two. N is their number.

    Args:
        keys: [B, H, N, 2, SIZE, K], queries then keys, not normalised.
        values: [B, H, N, SIZE, V].
        squares: [B, H, N, 2, P, SIZE, SIZE], inverse and inner products as P = 2 bfloat16 or one float32.
        scales: float32 [B, H, N, 4, SIZE], per token: of query @ memory, of key @ memory, of what is written,
            and the decay over the whole chunk.
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
    block_v: int,
    num_warps: int,
    float32: str,
    solved_width: int = 0,
) -> Chunks:
    """Arguments as `delta_net_chunk_`; memory gives sizes only, and tail is only read."""
    batch, length = mixed.shape[:2]
    _, heads, key_width, value_width = memory.shape
    wide_k, wide_v = (max(16, triton.next_power_of_2(width)) for width in (key_width, value_width))
    num_chunks, block_v = triton.cdiv(length, SIZE), min(block_v, wide_v)
    split, early = mixed.dtype == torch.bfloat16, launches_early(mixed)
    place = (batch, heads, num_chunks)
    chunks = Chunks(
        mixed.new_empty(*place, 2, SIZE, wide_k),
        mixed.new_empty(*place, SIZE, wide_v),
        mixed.new_empty(*place, 2, 1 + split, SIZE, SIZE),
        memory.new_empty(*place, 4, SIZE),
        "split" if split else float32,
    )
    _prepare[(num_chunks, heads * (1 + triton.cdiv(value_width, block_v)), batch)](
        mixed, a, b, taps, A_log, dt_bias, tail, rows, num_valid, *chunks[:4],
        memory.new_empty(*place, SIZE, SIZE), length,
        *mixed.stride()[:2], *a.stride(), *b.stride(), tail.stride(0),
        H=heads, K=key_width, V=value_width, W=taps.shape[1], BK=wide_k, WIDE_V=wide_v, SIZE=SIZE,
        PRECISION=chunks.precision, EARLY=early, BV=block_v, SOLVED=solved_width, num_warps=num_warps,
        launch_pdl=early,
    )  # fmt: skip
    return chunks


@triton.jit(do_not_specialize=["T"])
def _prepare(
    mixed, a, b, taps, A_log, dt_bias, tail, rows, num_valid, keys, values, squares, scales, work, T,
    mixed_row, mixed_token, a_row, a_token, a_head, b_row, b_token, b_head, tail_row,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BK: tl.constexpr,
    WIDE_V: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
    BV: tl.constexpr, SOLVED: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, heads then value blocks of heads, rows): two kinds of programs that share nothing."""
    if EARLY:  # the scan may fetch the memory as soon as nobody before this kernel still changes it
        gdc_wait()
        gdc_launch_dependents()
    chunk, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_chunks = tl.num_programs(0)
    first = chunk * SIZE
    mixed += batch.to(tl.int64) * mixed_row + first.to(tl.int64) * mixed_token
    tail += row_of(rows, batch) * tail_row
    C: tl.constexpr = H * (2 * K + V)
    if part < H:
        place = (batch.to(tl.int64) * H + part) * num_chunks + chunk
        counts = first + tl.arange(0, SIZE) < count(num_valid, batch, T)
        a += batch.to(tl.int64) * a_row + first.to(tl.int64) * a_token + part * a_head
        b += batch.to(tl.int64) * b_row + first.to(tl.int64) * b_token + part * b_head
        a_here = tl.load(a + tl.arange(0, SIZE) * a_token, mask=counts, other=0.0).to(tl.float32)
        b_here = tl.load(b + tl.arange(0, SIZE) * b_token, mask=counts, other=0.0).to(tl.float32)
        log_A, bias = tl.load(A_log + part).to(tl.float32), tl.load(dt_bias + part).to(tl.float32)
        width = tl.arange(0, BK)
        inside = tl.arange(0, SIZE)[:, None] * BK + width[None, :]
        q_place = keys + 2 * place * SIZE * BK + inside
        k_place = q_place + SIZE * BK
        channel = part * K + width
        q = _conv_silu(mixed, tail, taps, channel, width < K, first, T, mixed_token, C, W, SIZE)
        k = _conv_silu(mixed, tail, taps, channel + H * K, width < K, first, T, mixed_token, C, W, SIZE)
        tl.store(q_place, q)
        tl.store(k_place, k)
        log_decay = tl.where(counts, log_decay_of(a_here, log_A, bias), 0.0)
        beta = tl.where(counts, tl.sigmoid(b_here), 0.0)
        # Read again: as operands of products they need another layout, in which all of the above would be
        # computed once more.
        tl.debug_barrier()
        q, k = tl.load(q_place), tl.load(k_place)
        _relate(q, k, log_decay, beta, squares, scales, work, place, K, SIZE, PRECISION, SOLVED)
    else:
        blocks: tl.constexpr = (V + BV - 1) // BV
        head, block = (part - H) // blocks, (part - H) % blocks
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
def _relate(
    q, k, log_decay, beta, squares, scales, work, place,
    K: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr, SOLVED: tl.constexpr,
):  # fmt: skip
    """Store how the tokens of a chunk meet each other and the memory before it; q, k [SIZE, K] not normed.

    Differences of running sums of the logarithms are as good as sums over the segment here: the sums are
    float64, kept as two float32.
    """
    token = tl.arange(0, SIZE)
    sums = tl.cumsum(log_decay.to(tl.float64), 0)
    high = sums.to(tl.float32)
    low = (sums - high.to(tl.float64)).to(tl.float32)
    total = tl.sum(log_decay.to(tl.float64), 0)
    since = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
    decay = tl.where(token[:, None] >= token[None, :], tl.exp(tl.minimum(since, 0.0)), 0.0)
    wide_q, wide_k = q.to(tl.float32), k.to(tl.float32)
    norm_q = tl.rsqrt(tl.sum(wide_q * wide_q, 1) + 1e-6) * (K**-0.5)
    norm_k = tl.rsqrt(tl.sum(wide_k * wide_k, 1) + 1e-6)
    zero = tl.zeros((SIZE, SIZE), tl.float32)
    inner = product(q, tl.trans(k), zero, PRECISION) * decay * norm_q[:, None] * norm_k[None, :]
    square = token[:, None] * SIZE + token[None, :]
    parts: tl.constexpr = 2 if PRECISION == "split" else 1
    squares += 2 * place * parts * SIZE * SIZE
    _store_split(squares + parts * SIZE * SIZE + square, inner, SIZE * SIZE, PRECISION)
    met = product(k, tl.trans(k), zero, PRECISION) * decay * (norm_k * beta)[:, None] * norm_k[None, :]
    met = tl.where(token[:, None] > token[None, :], met, 0.0)
    work += place * SIZE * SIZE
    tl.store(work + square, met)
    tl.debug_barrier()
    if SOLVED == 0:
        _invert_(work, SIZE, PRECISION)
    else:
        _solve_(work, SOLVED, SIZE)
        if SOLVED <= 16:
            _merge_(work, 16, SIZE, PRECISION)
        if SOLVED <= 32:
            _merge_(work, 32, SIZE, PRECISION)
    solved = tl.load(work + square) * beta[None, :]
    _store_split(squares + square, solved, SIZE * SIZE, PRECISION)
    scales += place * 4 * SIZE + token
    start = tl.exp(high)
    tl.store(scales, start * norm_q)
    tl.store(scales + SIZE, start * norm_k)
    tl.store(scales + 2 * SIZE, tl.exp(tl.minimum((total - sums).to(tl.float32), 0.0)) * norm_k)
    tl.store(scales + 3 * SIZE, tl.exp(total.to(tl.float32)) + tl.zeros((SIZE,), tl.float32))


@triton.jit
def _invert_(square, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """In place, [64, 64] float32 at `square`: of a strictly lower triangular A the inverse of 1 + A.

    Blocks of 16 on the diagonal by substitution, then merged in pairs. Every entry of every step is bounded
    by what one key may recall of another (at most 1), however alike the keys are; powers of A would not be.
    Blocks travel through memory: kept in registers, in products of 64 x 64, they came out wrong (triton 3.6).
    """
    BLOCK: tl.constexpr = 16
    block = tl.arange(0, SIZE // BLOCK)[:, None, None] * BLOCK
    row, column = tl.arange(0, BLOCK)[None, :, None], tl.arange(0, BLOCK)[None, None, :]
    diagonal = square + (block + row) * SIZE + block + column
    strict = tl.load(diagonal)  # [4, 16, 16]
    solved = tl.where(row == column, 1.0, 0.0) + tl.zeros_like(strict)
    for line in tl.static_range(1, BLOCK):
        met = tl.sum(tl.where(row == line, strict, 0.0), 1)  # [4, 16]
        recalled = tl.sum(met[:, :, None] * solved, 1)
        solved = tl.where(row == line, solved - recalled[:, None, :], solved)
    tl.store(diagonal, solved)
    tl.debug_barrier()
    _merge_(square, BLOCK, SIZE, PRECISION)
    _merge_(square, 2 * BLOCK, SIZE, PRECISION)


@triton.jit
def _nothing():
    """A tuple to which rows are added."""
    return ()


@triton.jit
def _solve_(square, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """In place: blocks of BLOCK on the diagonal of [SIZE, SIZE] float32, strictly lower triangular A, become
    the inverse of 1 + A.

    A thread owns a column, and its rows are registers: no step waits for another thread.
    """
    lane = tl.arange(0, SIZE)
    column = lane % BLOCK
    corner = square + (lane // BLOCK) * (BLOCK * (SIZE + 1))
    solved = _nothing()
    for row in tl.static_range(BLOCK):
        x = tl.where(column == row, 1.0, 0.0)
        for before in tl.static_range(row):
            x -= tl.load(corner + (row * SIZE + before)) * solved[before]
        solved += (x,)
    tl.debug_barrier()
    for row in tl.static_range(BLOCK):
        tl.store(corner + row * SIZE + column, solved[row])
    tl.debug_barrier()


@triton.jit
def _merge_(square, WIDTH: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """From inverses of blocks [WIDTH, WIDTH] on the diagonal to those of blocks twice as wide, in place."""
    part = tl.arange(0, WIDTH)[:, None] * SIZE + tl.arange(0, WIDTH)[None, :]
    zero = tl.zeros((WIDTH, WIDTH), tl.float32)
    for start in tl.static_range(0, SIZE, 2 * WIDTH):
        upper = square + start * (SIZE + 1) + part
        corner = upper + WIDTH * SIZE
        met = _wide_squares(tl.load(corner), tl.load(upper), zero, PRECISION)
        found = _wide_squares(tl.load(upper + WIDTH * (SIZE + 1)), met, zero, PRECISION)
        tl.debug_barrier()
        tl.store(corner, -found)
    tl.debug_barrier()


@triton.jit
def _wide_squares(x, y, start, PRECISION: tl.constexpr):
    """start + x @ y, all float32."""
    if PRECISION == "split":
        high, low = halves(x)
        y_high, y_low = halves(y)
        start = product(high, y_low, product(high, y_high, start, PRECISION), PRECISION)
        return product(low, y_high, start, PRECISION)
    else:
        return product(x, y, start, PRECISION)


@triton.jit
def _store_split(place, x, distance, PRECISION: tl.constexpr):
    """x in float32, or as the sum of two bfloat16, the second `distance` further on."""
    if PRECISION == "split":
        high, low = halves(x)
        tl.store(place, high)
        tl.store(place + distance, low)
    else:
        tl.store(place, x)
