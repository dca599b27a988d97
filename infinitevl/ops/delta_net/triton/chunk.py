"""Gated DeltaNet for many tokens, in two launches: `delta_prepare`, then a scan over chunks of 64 tokens.

The scan carries a block of the state's value columns: a head of value width V is many heads of value width
`block_v` that share queries, keys and gates.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait

from infinitevl.ops.delta_net.triton.parts import check_layout, count, halves, product, row_of
from infinitevl.ops.delta_net.triton.prepare import FEW_CHUNKS, MANY_CHUNKS, SIZE, ChunkTuning, prepare
from infinitevl.ops.early import launches_early
from infinitevl.ops.rows import contiguous
from infinitevl.ops.table import FEW_CHUNKS_LIMIT


def delta_net_chunk_(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    recurrent_state: Tensor,
    conv_state: Tensor,
    rows: Tensor | None = None,
    num_valid: Tensor | None = None,
    tuning: ChunkTuning | None = None,
) -> Tensor:
    """As `ops.delta_net.torch.delta_net_chunk_`: out float32 [B, T, H, V]; both states change in place."""
    check_layout(mixed, conv_weight, recurrent_state, conv_state)
    rows, num_valid = contiguous(rows), contiguous(num_valid)
    batch, length = mixed.shape[:2]
    _, heads, key_width, value_width = recurrent_state.shape
    many = batch * heads * triton.cdiv(length, SIZE) > FEW_CHUNKS_LIMIT
    tuning = tuning or (MANY_CHUNKS if many else FEW_CHUNKS)
    chunks = prepare(
        mixed, a, b, conv_weight, A_log, dt_bias, recurrent_state, conv_state, rows, num_valid, tuning
    )
    block_v, early = min(tuning.block_v, chunks.values.shape[-1]), launches_early(mixed)
    out = recurrent_state.new_empty(batch, length, heads, value_width)
    _scan[(heads, triton.cdiv(value_width, block_v) + 1, batch)](
        mixed, conv_state, recurrent_state, rows, num_valid, chunks.keys, chunks.values, chunks.squares,
        chunks.scales, out, length, chunks.values.shape[2], *mixed.stride()[:2], conv_state.stride(0),
        recurrent_state.stride(0), H=heads, K=key_width, V=value_width, W=conv_weight.shape[1],
        BK=chunks.keys.shape[-1], WIDE_V=chunks.values.shape[-1], SIZE=SIZE, PRECISION=chunks.precision,
        EARLY=early, BV=block_v, BRIEF=tuning.brief and chunks.precision == "split",
        BC=max(chunks.keys.shape[-1], block_v), SLOTS=triton.next_power_of_2(conv_weight.shape[1] - 1),
        num_warps=tuning.warps if chunks.precision == "split" else 8,
        num_stages=tuning.stages if chunks.precision == "split" else 1, launch_pdl=early,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["T", "num_chunks"])
def _scan(
    mixed, conv_state, recurrent_state, rows, num_valid, keys, values, squares, scales, out, T, num_chunks,
    mixed_row, mixed_token, conv_row, recurrent_row,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BK: tl.constexpr,
    WIDE_V: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
    BV: tl.constexpr, BRIEF: tl.constexpr, BC: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Grid (heads, value blocks and one more, rows); that one more renews conv_state, which is free now.

    The state is carried transposed, [BV, BK]: as the first operand of every product it stays in registers.
    """
    head, block, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = row_of(rows, batch)
    if block == tl.num_programs(1) - 1:
        if EARLY:
            gdc_wait()
        mixed += batch.to(tl.int64) * mixed_row
        valid = count(num_valid, batch, T)
        _shift_head(mixed, conv_state + row * conv_row, head, valid, mixed_token, H, K, V, W, BC, SLOTS)
    else:
        column, width = block * BV + tl.arange(0, BV), tl.arange(0, BK)
        inside = (column < V)[:, None] & (width < K)[None, :]
        stored = recurrent_state + row * recurrent_row + head * K * V + column[:, None] + width[None, :] * V
        state = tl.load(stored, mask=inside, other=0.0)
        if EARLY:
            gdc_wait()
        place = (batch.to(tl.int64) * H + head) * num_chunks
        keys += 2 * place * SIZE * BK
        values += place * SIZE * WIDE_V
        squares += 2 * place * (2 if PRECISION == "split" else 1) * SIZE * SIZE
        scales += place * 5 * SIZE
        out += (batch.to(tl.int64) * T * H + head) * V
        for chunk in range(num_chunks):
            state, result = _scan_chunk(
                state, keys, values, squares, scales, column, BK, WIDE_V, SIZE, PRECISION, BRIEF
            )
            token = tl.arange(0, SIZE)
            kept = (column < V)[:, None] & (chunk * SIZE + token < T)[None, :]
            tl.store(out + column[:, None] + token[None, :] * (H * V), result, mask=kept)
            keys += 2 * SIZE * BK
            values += SIZE * WIDE_V
            squares += 2 * (2 if PRECISION == "split" else 1) * SIZE * SIZE
            scales += 5 * SIZE
            out += SIZE * H * V
        tl.store(stored, state, mask=inside)


@triton.jit
def _scan_chunk(
    state, keys, values, squares, scales, column,
    BK: tl.constexpr, WIDE_V: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr, BRIEF: tl.constexpr,
):  # fmt: skip
    """The recurrent_state [BV, BK] after a chunk, and the chunk's output [BV, SIZE]; both transposed."""
    token, width = tl.arange(0, SIZE), tl.arange(0, BK)
    inside = token[:, None] * BK + width[None, :]
    q, k = tl.load(keys + inside), tl.load(keys + SIZE * BK + inside)
    v = tl.load(values + token[:, None] * WIDE_V + column[None, :])
    of_query, of_key = tl.load(scales + token), tl.load(scales + SIZE + token)
    of_written, of_recurrent_state = tl.load(scales + 2 * SIZE + token), tl.load(scales + 3 * SIZE)
    of_value = tl.load(scales + 4 * SIZE + token)
    parts: tl.constexpr = 2 if PRECISION == "split" else 1
    zero = tl.zeros((column.shape[0], SIZE), tl.float32)
    recalled = _wide_product(state, tl.trans(k), zero, PRECISION, BRIEF)
    wanted = tl.trans(v).to(tl.float32) * of_value[None, :] - recalled * of_key[None, :]
    written = _square_product(wanted, squares, zero, SIZE, PRECISION, BRIEF)
    out = _wide_product(state, tl.trans(q), zero, PRECISION, BRIEF) * of_query[None, :]
    out = _square_product(written, squares + parts * SIZE * SIZE, out, SIZE, PRECISION, BRIEF)
    state = _wide_product(written * of_written[None, :], k, state * of_recurrent_state, PRECISION, BRIEF)
    return state, out


@triton.jit
def _wide_product(x, y, start, PRECISION: tl.constexpr, BRIEF: tl.constexpr):
    """start + x @ y for float32 x and y in activations' dtype."""
    if BRIEF:
        return product(x.to(y.dtype), y, start, PRECISION)
    elif PRECISION == "split":
        high, low = halves(x)
        return product(low, y, product(high, y, start, PRECISION), PRECISION)
    else:
        return product(x, y, start, PRECISION)


@triton.jit
def _square_product(x, square, start, SIZE: tl.constexpr, PRECISION: tl.constexpr, BRIEF: tl.constexpr):
    """start + x @ y.T for float32 x and a stored y [SIZE, SIZE]."""
    place = square + tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    if BRIEF:
        x = x.to(square.dtype.element_ty)
        start = product(x, tl.trans(tl.load(place + SIZE * SIZE)), start, PRECISION)
        return product(x, tl.trans(tl.load(place)), start, PRECISION)
    elif PRECISION == "split":
        high, low = halves(x)
        y = tl.trans(tl.load(place))
        start = product(high, tl.trans(tl.load(place + SIZE * SIZE)), start, PRECISION)
        return product(low, y, product(high, y, start, PRECISION), PRECISION)
    else:
        return product(x, tl.trans(tl.load(place)), start, PRECISION)


@triton.jit
def _shift_head(
    mixed, conv_state, head, num_tokens, stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BC: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """The conv_state of all channels of a head: queries, keys, values."""
    C: tl.constexpr = H * (2 * K + V)
    width = tl.arange(0, BC)
    # num_tokens may be small enough that an input stays in the conv_state, in another slot.
    _shift_conv_state(mixed, conv_state, head * K + width, width < K, num_tokens, stride, C, W, SLOTS)
    _shift_conv_state(mixed, conv_state, (H + head) * K + width, width < K, num_tokens, stride, C, W, SLOTS)
    for start in tl.static_range(0, V, BC):
        channel = 2 * H * K + head * V + start + width
        _shift_conv_state(mixed, conv_state, channel, start + width < V, num_tokens, stride, C, W, SLOTS)


@triton.jit
def _shift_conv_state(
    mixed,
    conv_state,
    channels,
    keep,
    num_tokens,
    stride,
    C: tl.constexpr,
    W: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Make conv_state [W - 1, C] the last inputs before token num_tokens of mixed; SLOTS >= W - 1."""
    slot = tl.arange(0, SLOTS)[:, None]
    old = slot + num_tokens  # where the new input stands in conv_state, followed by mixed
    token = old - (W - 1)
    keep = keep[None, :] & (slot < W - 1)
    before = tl.load(conv_state + old * C + channels[None, :], mask=keep & (token < 0), other=0.0)
    new = tl.load(mixed + token * stride + channels[None, :], mask=keep & (token >= 0), other=0.0)
    tl.debug_barrier()  # another thread of this program may still read what this one writes
    tl.store(conv_state + slot * C + channels[None, :], tl.where(token < 0, before, new), mask=keep)
