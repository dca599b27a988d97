"""The kernels behind `window`: rotate, attend, finish for many tokens; step and merge for one.

Tokens are counted from a number that is `length` less a multiple of S, so that 32 bits are enough for streams
without end: the ring holds the tokens below `stored`, which is at most 2 S - 1, and slot = token mod S.

With SINKS, the first slots hold the first tokens of a sequence for ever and are no part of the ring, which is
then the other R = S - SINKS slots: what is said above holds of the tokens from SINKS on, and of R. Sinks are
met as keys of their own, and the window passes over them: no key counts twice.
"""

import triton
import triton.language as tl

from infinitevl.ops.attention.triton.attend import LOWEST, absorb, merge, normalised, turned


@triton.jit
def rotate_kernel(
    q, k, cos, sin, new_q, new_k, num_tokens,
    q_b, q_t, q_h, k_b, k_t, k_h, cos_b, cos_t, sin_b, sin_t,
    H: tl.constexpr, H_KV: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All heads of one token."""
    t, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    cos += b * cos_b + t * cos_t
    sin += b * sin_b + t * sin_t
    place = b * num_tokens + t
    _rotate_heads(q + b * q_b + t * q_t, q_h, cos, sin, new_q + place * H * D, H, D, WIDTH)
    _rotate_heads(k + b * k_b + t * k_t, k_h, cos, sin, new_k + place * H_KV * D, H_KV, D, WIDTH)


@triton.jit
def _rotate_heads(x, x_h, cos, sin, out, H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    heads = tl.arange(0, triton.next_power_of_2(H))[:, None]
    dims = tl.arange(0, WIDTH)[None]
    real = (heads < H) & (dims < D)
    tl.store(out + heads * D + dims, turned(x + heads * x_h, heads * 0, cos, sin, dims, real, D), real)


@triton.jit
def _count_stored(length, b, num_slots, SINKS: tl.constexpr):
    """Tokens stored of a row, as an int32 that names the same slots and is at least what they hold."""
    stored = tl.load(length + b)
    wrapped = num_slots + (stored - SINKS) % (num_slots - SINKS)
    return tl.where(stored < num_slots, stored, wrapped).to(tl.int32)


@triton.jit
def _slot_of(token, num_slots, SINKS: tl.constexpr):
    """The slot of a token; those of the sinks are their own numbers."""
    if SINKS == 0:
        return token % num_slots
    return tl.where(token < SINKS, token, SINKS + (token - SINKS) % (num_slots - SINKS))


@triton.jit
def _load_whole(x, dims, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of which each exists, padded with zeros from D to WIDTH."""
    if D == WIDTH:
        return tl.load(x)
    return tl.load(x, dims < D, other=0.0)


@triton.jit
def attend_kernel(
    q, k_new, v_new, keys, values, length, num_valid, rows, parts, sums, num_tokens, num_slots, window,
    v_b, v_t, v_h, keys_row, values_row, scale,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, H_KV: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, SINKS: tl.constexpr,
    WRAPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens of one group of heads meet one split of the sinks and of the window of any of them."""
    first = tl.program_id(0) * BLOCK_T
    head, split = tl.program_id(1) // SPLITS, tl.program_id(1) % SPLITS
    b = tl.program_id(2).to(tl.int64)
    row = b
    if rows is not None:
        row = tl.load(rows + b)
    valid = num_tokens
    if num_valid is not None:
        valid = tl.load(num_valid + b).to(tl.int32)
    stored = _count_stored(length, b, num_slots, SINKS)
    ring_slots = num_slots - SINKS
    keys += row * keys_row + head * num_slots * D
    values += row * values_row + head * num_slots * D
    k_new += (b * num_tokens * H_KV + head) * D
    v_new += b * v_b + head * v_h

    query = first + tl.arange(0, BLOCK_T * GROUP_PAD) // GROUP_PAD
    member = tl.arange(0, BLOCK_T * GROUP_PAD) % GROUP_PAD
    dims = tl.arange(0, WIDTH)[None]
    cols = tl.arange(0, BLOCK_K)
    real_query = (query < num_tokens) & (member < GROUP)
    place = (b * num_tokens + query) * (H_KV * GROUP) + head * GROUP + member
    q_tile = tl.load(q + place[:, None] * D + dims, real_query[:, None] & (dims < D), other=0.0)
    acc = tl.zeros([BLOCK_T * GROUP_PAD, WIDTH], tl.float32)
    top = tl.full([BLOCK_T * GROUP_PAD], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_T * GROUP_PAD], tl.float32)

    highest = stored + tl.minimum(first + BLOCK_T, valid)
    if SINKS > 0:
        # This split's share of the sinks: those that are stored all queries see, in whole blocks.
        known = tl.where(first < valid, tl.minimum(highest, SINKS), 0)
        sink_blocks = tl.cdiv(known, BLOCK_K)
        sinks_from = sink_blocks * split // SPLITS * BLOCK_K
        sinks_to = tl.minimum(sink_blocks * (split + 1) // SPLITS * BLOCK_K, known)
        masked_from = tl.maximum(tl.minimum(sinks_to, stored) // BLOCK_K * BLOCK_K, sinks_from)
        for start in range(sinks_from, masked_from, BLOCK_K):
            offset = start * D + cols[:, None] * D + dims
            k = _load_whole(keys + offset, dims, D, WIDTH)
            v = _load_whole(values + offset, dims, D, WIDTH)
            acc, top, total = absorb(q_tile, k, v, None, acc, top, total, scale, False, PRECISION)
        for start in tl.range(masked_from, sinks_to, BLOCK_K, num_stages=1):
            token = start + cols
            exists = token < sinks_to
            is_new = token >= stored
            slot, index = token.to(tl.int64) * D, (token - stored).to(tl.int64)
            wanted = exists[:, None] & (dims < D)
            k_from = tl.where(is_new, k_new + index * (H_KV * D), keys + slot)
            v_from = tl.where(is_new, v_new + index * v_t, values + slot)
            k = tl.load(k_from[:, None] + dims, wanted, other=0.0)
            v = tl.load(v_from[:, None] + dims, wanted, other=0.0)
            seen = exists[None] & (token[None] <= (stored + query)[:, None])
            acc, top, total = absorb(q_tile, k, v, seen, acc, top, total, scale, True, PRECISION)

    # What any query of the block sees, in whole blocks of keys, and this split's share of it.
    lowest = tl.maximum(tl.maximum(stored + first - window + 1, stored - ring_slots), SINKS)
    base = lowest // BLOCK_K * BLOCK_K
    num_blocks = tl.where(first < valid, tl.cdiv(tl.maximum(highest - base, 0), BLOCK_K), 0)
    begin = base + num_blocks * split // SPLITS * BLOCK_K
    end = tl.minimum(base + num_blocks * (split + 1) // SPLITS * BLOCK_K, highest)
    # What all of them see: whole blocks of the ring, whole blocks of new tokens.
    seen_by_all = tl.maximum(tl.maximum(stored + first + BLOCK_T - window, stored - ring_slots), begin)
    ring_from = tl.cdiv(tl.maximum(seen_by_all, SINKS), BLOCK_K) * BLOCK_K
    ring_to = tl.maximum(tl.minimum(end, stored) // BLOCK_K * BLOCK_K, ring_from)
    new_from = tl.cdiv(tl.maximum(tl.maximum(seen_by_all, stored), SINKS), BLOCK_K) * BLOCK_K
    new_to = tl.maximum(tl.minimum(end, stored + first + 1) // BLOCK_K * BLOCK_K, new_from)

    for start in range(ring_from, ring_to, BLOCK_K):
        if WRAPS:
            offset = _slot_of(start + cols, num_slots, SINKS)[:, None] * D + dims
        else:
            offset = _slot_of(start, num_slots, SINKS) * D + cols[:, None] * D + dims
        k = _load_whole(keys + offset, dims, D, WIDTH)
        v = _load_whole(values + offset, dims, D, WIDTH)
        acc, top, total = absorb(q_tile, k, v, None, acc, top, total, scale, False, PRECISION)
    for start in range(new_from, new_to, BLOCK_K):
        index = (start - stored + cols)[:, None]
        k = _load_whole(k_new + index * (H_KV * D) + dims, dims, D, WIDTH)
        v = _load_whole(v_new + index * v_t + dims, dims, D, WIDTH)
        acc, top, total = absorb(q_tile, k, v, None, acc, top, total, scale, False, PRECISION)
    for start in tl.range(begin, end - (ring_to - ring_from) - (new_to - new_from), BLOCK_K, num_stages=1):
        at = tl.where(start >= ring_from, start + ring_to - ring_from, start)
        token = tl.where(at >= new_from, at + new_to - new_from, at) + cols
        exists = (token >= lowest) & (token < end)
        is_new = token >= stored
        slot, index = _slot_of(token, num_slots, SINKS).to(tl.int64) * D, (token - stored).to(tl.int64)
        wanted = exists[:, None] & (dims < D)
        k = tl.load(
            tl.where(is_new, k_new + index * (H_KV * D), keys + slot)[:, None] + dims, wanted, other=0.0
        )
        v = tl.load(tl.where(is_new, v_new + index * v_t, values + slot)[:, None] + dims, wanted, other=0.0)
        behind = (stored + query)[:, None] - token[None]
        seen = exists[None] & (behind >= 0) & (behind < window)
        acc, top, total = absorb(q_tile, k, v, seen, acc, top, total, scale, True, PRECISION)

    mean, log_sum = normalised(acc, top, total)
    if SPLITS > 1:
        place += split * tl.num_programs(2).to(tl.int64) * num_tokens * (H_KV * GROUP)
        tl.store(sums + place, log_sum, real_query)
    wanted = real_query[:, None] & (dims < D)
    tl.store(parts + place[:, None] * D + dims, mean.to(parts.dtype.element_ty), wanted)


@triton.jit
def finish_kernel(
    parts, sums, out, num_rows, num_merging,
    k_new, v_new, keys, values, length, num_valid, rows, num_new, num_tokens, num_slots,
    v_b, v_t, v_h, keys_row, values_row,
    H_KV: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, STORED: tl.constexpr,
    SINKS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The first programs merge, the others store."""
    pid = tl.program_id(0)
    if pid < num_merging:
        if SPLITS > 1:
            merge(parts, sums, out, pid * ROWS, num_rows, SPLITS, ROWS, D)
    else:
        new = (pid - num_merging) * STORED + tl.arange(0, STORED)  # of [B, T, H_kv]
        head, t = new % H_KV, new // H_KV % num_tokens
        b = (new // H_KV // num_tokens).to(tl.int64)
        exists = new < num_new
        row = b
        if rows is not None:
            row = tl.load(rows + b, exists, other=0)
        valid = tl.full([STORED], 0, tl.int64) + num_tokens
        if num_valid is not None:
            valid = tl.load(num_valid + b, exists, other=0)
        # Of tokens that share a slot the last one stays, so that no two programs write to one place.
        token = tl.load(length + b, exists, other=0) + t
        kept = exists & (t < valid) & ((t >= valid - (num_slots - SINKS)) | (token < SINKS))
        slot = _slot_of(token, num_slots, SINKS)
        place = ((head * num_slots + slot) * D)[:, None]
        dims = tl.arange(0, WIDTH)[None]
        wanted = kept[:, None] & (dims < D)
        k = tl.load(k_new + new.to(tl.int64)[:, None] * D + dims, wanted)
        v = tl.load(v_new + (b * v_b + t * v_t + head * v_h)[:, None] + dims, wanted)
        tl.store(keys + (row * keys_row)[:, None] + place + dims, k, wanted)
        tl.store(values + (row * values_row)[:, None] + place + dims, v, wanted)


@triton.jit
def step_kernel(
    q, k, v, cos, sin, keys, values, length, rows, parts, sums, num_slots,
    q_b, q_h, k_b, k_h, v_b, v_h, cos_b, sin_b, keys_row, values_row, scale,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, SINKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One token of one group of heads meets one split of the slots."""
    split, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = b
    if rows is not None:
        row = tl.load(rows + b)
    length_before = tl.load(length + b)
    own_slot = _slot_of(length_before, num_slots, SINKS).to(tl.int32)
    filled = tl.minimum(length_before, num_slots).to(tl.int32)
    keys += row * keys_row + head * num_slots * D
    values += row * values_row + head * num_slots * D
    cos += b * cos_b
    sin += b * sin_b
    member = tl.arange(0, GROUP_PAD)[:, None]
    dims = tl.arange(0, WIDTH)[None]
    cols = tl.arange(0, BLOCK_K)
    real_dim = dims < D
    real = (member < GROUP) & real_dim
    query = q + b * q_b + (head * GROUP + member) * q_h
    q_tile = turned(query, member * 0, cos, sin, dims, real, D)
    own_k = turned(k + b * k_b + head * k_h, 0, cos, sin, dims, real_dim, D)
    own_v = tl.load(v + b * v_b + head * v_h + dims, real_dim, other=0.0)

    # The first split meets the new key here and stores it; in the ring all pass over its slot.
    mine = split == 0
    own_score = tl.sum(q_tile.to(tl.float32) * own_k.to(tl.float32), 1) * scale
    top = tl.where(mine, own_score, LOWEST)
    total = tl.where(mine, tl.full([GROUP_PAD], 1.0, tl.float32), 0.0)
    acc = tl.where(mine, own_v.to(tl.float32) + tl.zeros([GROUP_PAD, WIDTH], tl.float32), 0.0)
    num_blocks = tl.cdiv(filled, BLOCK_K)
    begin = num_blocks * split // SPLITS * BLOCK_K
    end = num_blocks * (split + 1) // SPLITS * BLOCK_K
    for start in range(begin, end, BLOCK_K):
        slot = start + cols
        held = (slot < filled) & (slot != own_slot)
        offset = slot[:, None] * D + dims
        k_tile = tl.load(keys + offset, held[:, None] & real_dim, other=0.0)
        v_tile = tl.load(values + offset, held[:, None] & real_dim, other=0.0)
        acc, top, total = absorb(q_tile, k_tile, v_tile, held[None], acc, top, total, scale, True, PRECISION)
    tl.store(keys + own_slot * D + dims, own_k, real_dim & mine)
    tl.store(values + own_slot * D + dims, own_v, real_dim & mine)

    mean, log_sum = normalised(acc, top, total)
    num_heads = tl.num_programs(1) * GROUP
    place = (split * tl.num_programs(2).to(tl.int64) + b) * num_heads + head * GROUP + tl.arange(0, GROUP_PAD)
    tl.store(sums + place, log_sum, tl.arange(0, GROUP_PAD) < GROUP)
    tl.store(parts + place[:, None] * D + dims, mean, real)


@triton.jit
def merge_kernel(
    parts, sums, out, num_rows, SPLITS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    merge(parts, sums, out, tl.program_id(0) * ROWS, num_rows, SPLITS, ROWS, D)
