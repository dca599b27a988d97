"""The gated delta rule in training, backward; names as in `train_delta`.

First a scan from the end, which leaves the gradient of what each chunk writes and of the state after it;
then all chunks at once. Sums of products with decays are taken from the gradients of queries and keys: what a
decay gains by one it loses by the other, exactly, as both come of the same rounded products.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.delta_net.train.forward import (
    COLUMNS,
    SCAN_COLUMNS,
    Kept,
    chunks_of,
    columns_of,
    decay_between,
    dot,
    get,
    only,
    put,
    rows_of,
    sequences_of,
    sizes_of,
    tile,
    to_end,
    tokens_of,
)

KEY_COLUMNS = 64  # key columns of one program of `_read_backward`


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    firsts: Tensor | None,
    source: Tensor | None,
    kept: Kept,
    d_out: Tensor,
    d_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_decay, beta and the first state; all contiguous, d_out not spread."""
    batch, length, heads, _ = q.shape
    chunks, sizes = kept.since.shape[2], sizes_of(q, v)
    narrow, few = columns_of(v, COLUMNS), columns_of(v, SCAN_COLUMNS)
    wide, block_k = columns_of(v, 2 * COLUMNS), min(KEY_COLUMNS, int(sizes["BK"]))
    d_written, after = torch.empty_like(kept.written), torch.empty_like(kept.before)
    d_recurrent_state = torch.empty_like(d_last)
    _inner_backward[(chunks, heads * triton.cdiv(v.shape[3], wide), batch)](
        q, k, kept.since, source, d_out, d_written, length, **sizes, BV=wide, num_warps=8
    )
    _scan_backward[(triton.cdiv(v.shape[3], few), batch * heads, sequences_of(firsts))](
        q, k, kept.erased, kept.since, firsts, source, d_out, d_last, d_written, after, d_recurrent_state,
        length, chunks, **sizes, BV=few, num_warps=4, num_stages=2,
    )  # fmt: skip
    key_blocks = triton.cdiv(q.shape[3], block_k)
    d_q, d_erased = torch.empty_like(q), torch.empty_like(kept.erased)
    d_read = q.new_empty(q.shape, dtype=torch.float32)
    d_since = kept.since.new_empty(key_blocks, *kept.since.shape)
    _read_backward[(chunks, heads * key_blocks, batch)](
        q, k, kept.since, kept.before, kept.written, source, d_out, d_written, after, d_q, d_read,
        d_erased, d_since, length, **sizes, BV=narrow, BKB=block_k, num_warps=8,
    )  # fmt: skip
    d_k, d_v = torch.empty_like(k), torch.empty_like(v)
    d_log_decay, d_beta = torch.empty_like(beta), torch.empty_like(beta)
    _prepare_backward[(chunks, heads, batch)](
        k, v, beta, kept.since, kept.inverse, kept.values, kept.erased, d_written, d_erased, d_read, d_since,
        d_k, d_v, d_log_decay, d_beta, length, **sizes, BV=narrow, KEY_BLOCKS=key_blocks, num_warps=8,
    )  # fmt: skip
    return d_q, d_k, d_v, d_log_decay, d_beta, d_recurrent_state


@triton.jit(do_not_specialize=["T"])
def _inner_backward(
    q, k, since, source, d_out, d_written, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SIZE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradient of what a chunk writes, as far as its own queries read it."""
    chunk, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks: tl.constexpr = (V + BV - 1) // BV
    head = part // blocks
    column = part % blocks * BV + tl.arange(0, BV)
    place = (batch.to(tl.int64) * H + head) * tl.num_programs(0) + chunk
    token, width = tl.arange(0, SIZE), tl.arange(0, BK)
    sums = tl.load(since + place * SIZE + token)
    queries = get(rows_of(q, batch, chunk, head, T, H, K, SIZE, width))
    keys = get(rows_of(k, batch, chunk, head, T, H, K, SIZE, width))
    inner = (dot(queries, tl.trans(keys)) * decay_between(sums, SIZE, False)).to(q.dtype.element_ty)
    gradient = get(tokens_of(d_out, source, batch, chunk, head, T, H, V, SIZE, column))
    put(tile(d_written, place, V, SIZE, token, column), dot(tl.trans(inner), gradient))


@triton.jit(do_not_specialize=["T", "num_chunks"])
def _scan_backward(
    q, k, erased, since, firsts, source, d_out, d_last, d_written, after, d_recurrent_state, T, num_chunks,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SIZE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """A block of value columns of one head of a sequence, from its last chunk; d_written is completed."""
    row, sequence = tl.program_id(1), tl.program_id(2)
    batch, head = row // H, row % H
    token, width = tl.arange(0, SIZE), tl.arange(0, BK)
    column = tl.program_id(0) * BV + tl.arange(0, BV)
    dtype = q.dtype.element_ty
    is_last = sequence == tl.num_programs(2) - 1
    state = get(only(tile(d_last, row.to(tl.int64), V, K, width, column), is_last))
    first, stop = chunks_of(firsts, sequence, num_chunks)
    for step in tl.range(stop - first):
        chunk = stop - 1 - step
        place = row.to(tl.int64) * num_chunks + chunk
        queries = get(rows_of(q, batch, chunk, head, T, H, K, SIZE, width))
        keys = get(rows_of(k, batch, chunk, head, T, H, K, SIZE, width))
        erase = get(tile(erased, place, K, SIZE, token, width))
        gradient = get(tokens_of(d_out, source, batch, chunk, head, T, H, V, SIZE, column)).to(tl.float32)
        write = get(tile(d_written, place, V, SIZE, token, column)).to(tl.float32)
        grown, decay, across = to_end(since + place * SIZE, SIZE)
        rounded = state.to(dtype)
        put(tile(after, place, V, K, width, column), rounded)
        write = (write + dot(keys, rounded) * decay[:, None]).to(dtype)
        put(tile(d_written, place, V, SIZE, token, column), write)
        state = state * across + dot(tl.trans(queries), (gradient * grown[:, None]).to(dtype))
        state -= dot(tl.trans(erase), write)
    put(only(tile(d_recurrent_state, row.to(tl.int64), V, K, width, column), sequence == 0), state)


@triton.jit(do_not_specialize=["T"])
def _read_backward(
    q, k, since, before, written, source, d_out, d_written, after, d_q, d_read, d_erased, d_since, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SIZE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, BV: tl.constexpr, BKB: tl.constexpr,
):  # fmt: skip
    """A block of key columns of one chunk: all gradients but those through its inverse.

    d_read: of keys, as far as they are read and carried to the chunk's end.
    """
    chunk, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks: tl.constexpr = (K + BKB - 1) // BKB
    head, block = part // blocks, part % blocks
    row = batch.to(tl.int64) * H + head
    place = row * tl.num_programs(0) + chunk
    token, width = tl.arange(0, SIZE), block * BKB + tl.arange(0, BKB)
    dtype = q.dtype.element_ty
    erase, carry = tl.zeros((SIZE, BKB), tl.float32), tl.zeros((SIZE, BKB), tl.float32)
    read = tl.zeros((SIZE, BKB), tl.float32)
    met, across_grown = tl.zeros((SIZE, SIZE), tl.float32), 0.0
    for start in tl.range(0, V, BV):
        column = start + tl.arange(0, BV)
        state = get(tile(before, place, V, K, width, column))
        d_state = get(tile(after, place, V, K, width, column))
        write = get(tile(written, place, V, SIZE, token, column))
        d_write = get(tile(d_written, place, V, SIZE, token, column))
        gradient = get(tokens_of(d_out, source, batch, chunk, head, T, H, V, SIZE, column))
        erase += dot(d_write, tl.trans(state))
        carry += dot(write, tl.trans(d_state))
        read += dot(gradient, tl.trans(state))
        met += dot(gradient, tl.trans(write))
        across_grown += tl.sum(state.to(tl.float32) * d_state.to(tl.float32))
    put(tile(d_erased, place, K, SIZE, token, width), -erase)
    sums = tl.load(since + place * SIZE + token)
    grown, decay, across = to_end(since + place * SIZE, SIZE)
    inner = (met * decay_between(sums, SIZE, False)).to(dtype)
    queries = get(rows_of(q, batch, chunk, head, T, H, K, SIZE, width))
    keys = get(rows_of(k, batch, chunk, head, T, H, K, SIZE, width))
    d_queries = dot(inner, keys) + read * grown[:, None]
    d_inner, d_end = dot(tl.trans(inner), queries), carry * decay[:, None]
    put(rows_of(d_q, batch, chunk, head, T, H, K, SIZE, width), d_queries)
    put(rows_of(d_read, batch, chunk, head, T, H, K, SIZE, width), d_inner + d_end)
    wide_keys = keys.to(tl.float32)
    carried = tl.sum(wide_keys * d_end, 1)
    d_sums = tl.sum(queries.to(tl.float32) * d_queries, 1) - tl.sum(wide_keys * d_inner, 1) - carried
    d_sums += tl.where(token == SIZE - 1, tl.sum(carried, 0) + across * across_grown, 0.0)
    d_since += (block * tl.num_programs(2) * H + row) * tl.num_programs(0) * SIZE + chunk * SIZE
    tl.store(d_since + token, d_sums)


@triton.jit(do_not_specialize=["T"])
def _prepare_backward(
    k, v, beta, since, inverse, values, erased, d_written, d_erased, d_read, d_since, d_k, d_v, d_log_decay,
    d_beta, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SIZE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, BV: tl.constexpr, KEY_BLOCKS: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: the gradients through its inverse, and what they all come to."""
    chunk, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = batch.to(tl.int64) * H + head
    place = row * tl.num_programs(0) + chunk
    token, width = tl.arange(0, SIZE), tl.arange(0, BK)
    dtype = k.dtype.element_ty
    exists = chunk * SIZE + token < T
    at = (batch.to(tl.int64) * T + chunk * SIZE + token) * H + head
    strength = tl.load(beta + at, mask=exists, other=0.0)
    sums = tl.load(since + place * SIZE + token)
    square = token[:, None] * SIZE + token[None, :]
    back = tl.trans(tl.load(inverse + place * SIZE * SIZE + square))
    solved = dot(back, get(tile(d_erased, place, K, SIZE, token, width)))
    met = dot(solved.to(dtype), tl.trans(get(tile(erased, place, K, SIZE, token, width))))
    d_strength = tl.zeros((SIZE,), tl.float32)
    for start in tl.range(0, V, BV):
        column = start + tl.arange(0, BV)
        d_value = dot(back, get(tile(d_written, place, V, SIZE, token, column)))
        met += dot(d_value.to(dtype), tl.trans(get(tile(values, place, V, SIZE, token, column))))
        value = get(rows_of(v, batch, chunk, head, T, H, V, SIZE, column)).to(tl.float32)
        d_strength += tl.sum(value * d_value, 1)
        put(rows_of(d_v, batch, chunk, head, T, H, V, SIZE, column), d_value * strength[:, None])
    keys = get(rows_of(k, batch, chunk, head, T, H, K, SIZE, width))
    wide_keys = keys.to(tl.float32)
    total = get(rows_of(d_read, batch, chunk, head, T, H, K, SIZE, width))
    grown = tl.exp(sums)
    erased_by = grown * tl.sum(wide_keys * solved, 1)
    total += solved * (strength * grown)[:, None]
    related = -met * decay_between(sums, SIZE, True)
    d_strength += erased_by + tl.sum(wide_keys * dot(related.to(dtype), keys), 1)
    related = (related * strength[:, None]).to(dtype)
    above, below = dot(related, keys), dot(tl.trans(related), keys)
    put(rows_of(d_k, batch, chunk, head, T, H, K, SIZE, width), total + above + below)
    d_sums = strength * erased_by + tl.sum(wide_keys * above, 1) - tl.sum(wide_keys * below, 1)
    for block in tl.static_range(KEY_BLOCKS):
        part = block * tl.num_programs(2) * H * tl.num_programs(0) + place
        d_sums += tl.load(d_since + part * SIZE + token)
    tl.store(d_log_decay + at, tl.cumsum(d_sums, 0, reverse=True), mask=exists)
    tl.store(d_beta + at, d_strength, mask=exists)
