"""The gated delta rule in training: chunks of 64 tokens, forward.

What stays within a chunk is done for all chunks at once, then one program carries a block of the state's
value columns from chunk to chunk in float32 registers. Products have operands in the activations' dtype and
sums in float32; decays are applied to sums rather than to operands wherever that is the same.

The letters of the paper (section 3, WY form), for one chunk: M = (1 + A)^-1 the inverse, U = M (beta v),
Y = M (beta exp(since) k), written = U - Y recurrent_state.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.delta_net.triton.inverse import invert_

SIZE = 64  # tokens of a chunk
SCAN_COLUMNS = 32  # value columns whose memory one program carries
COLUMNS = 64  # value columns that other programs take at a time


class Kept(NamedTuple):
    """What the backward pass needs; in the activations' dtype but for `since`.

    since: float32 [B, H, N, 64], running sum of the logarithms of the decay within a chunk.
    inverse: M [B, H, N, 64, 64]. values: U [B, H, N, 64, V]. erased: Y [B, H, N, 64, K].
    before: the recurrent state before each chunk [B, H, N, K, V]. written: [B, H, N, 64, V].
    """

    since: Tensor
    inverse: Tensor
    values: Tensor
    erased: Tensor
    before: Tensor
    written: Tensor


def empty_kept(q: Tensor, v: Tensor) -> Kept:
    """Room for q [B, T, H, K] and v [B, T, H, V]."""
    (batch, length, heads, key_width), value_width = q.shape, v.shape[3]
    place = (batch, heads, triton.cdiv(length, SIZE))
    return Kept(
        q.new_empty(*place, SIZE, dtype=torch.float32),
        q.new_empty(*place, SIZE, SIZE),
        q.new_empty(*place, SIZE, value_width),
        q.new_empty(*place, SIZE, key_width),
        q.new_empty(*place, key_width, value_width),
        q.new_empty(*place, SIZE, value_width),
    )


def empty_out(v: Tensor, place: Tensor | None) -> Tensor:
    """Room for the output: of all places of v, or of the tokens that lie at `place`."""
    return v.new_empty(v.shape[0], v.shape[1] if place is None else len(place), *v.shape[2:])


def sequences_of(firsts: Tensor | None) -> int:
    """How many sequences share each row."""
    return 1 if firsts is None else len(firsts) - 1


def sizes_of(q: Tensor, v: Tensor) -> dict[str, int | str]:
    """Constants that all kernels of the rule share."""
    return {
        "H": q.shape[2], "K": q.shape[3], "V": v.shape[3], "SIZE": SIZE,
        "BK": max(16, triton.next_power_of_2(q.shape[3])), "PRECISION": precision_of(q),
    }  # fmt: skip


def precision_of(x: Tensor) -> str:
    """How float32 operands are multiplied; bfloat16 ones meet as they are."""
    return "split" if x.dtype == torch.bfloat16 else "ieee"


def columns_of(v: Tensor, most: int) -> int:
    """Value columns of one program."""
    return min(most, max(16, triton.next_power_of_2(v.shape[3])))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    recurrent_state: Tensor,
    firsts: Tensor | None,
    place: Tensor | None,
    source: Tensor | None,
) -> tuple[Tensor, Tensor, Kept]:
    """Output [B, T, H, V] in v's dtype, the last recurrent state float32 [B, H, K, V], and what to keep.

    Args:
        q, k: [B, T, H, K]. v: [B, T, H, V]. log_decay, beta: float32 [B, T, H]. recurrent_state: float32
            [B, H, K, V]. All contiguous.
        firsts: int32 [S + 1], the first chunk of each of S sequences, and N; the first of them begins with
            `recurrent_state`, the others with none, and the last state is the last one's. None: one sequence.
        place, source: as in `ops.rows`, of arguments that are spread; the output is not.
    """
    batch, length, heads, _ = q.shape
    kept, sizes = empty_kept(q, v), sizes_of(q, v)
    chunks, narrow = kept.since.shape[2], columns_of(v, COLUMNS)
    work = kept.since.new_empty(batch, heads, chunks, SIZE, SIZE)
    _prepare[(chunks, heads, batch)](
        k, v, log_decay, beta, work, kept.since, kept.inverse, kept.values, kept.erased, length, **sizes,
        BV=narrow, num_warps=8,
    )  # fmt: skip
    last, few = torch.empty_like(recurrent_state), columns_of(v, SCAN_COLUMNS)
    _scan[(triton.cdiv(v.shape[3], few), batch * heads, sequences_of(firsts))](
        k, kept.values, kept.erased, kept.since, recurrent_state, firsts, kept.before, kept.written, last,
        length, chunks, **sizes, BV=few, num_warps=4, num_stages=2,
    )  # fmt: skip
    out, wide = empty_out(v, place), columns_of(v, 2 * COLUMNS)
    _read[(chunks, heads * triton.cdiv(v.shape[3], wide), batch)](
        q, k, kept.since, kept.before, kept.written, source, out, length, **sizes, BV=wide, num_warps=8
    )
    return out, last, kept


@triton.jit
def rows_of(x, batch, chunk, head, T, H: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, column):
    """Where a chunk's tokens of x [B, T, H, WIDTH] lie, [SIZE, columns], and which of them exist."""
    token = chunk * SIZE + tl.arange(0, SIZE)
    place = ((batch.to(tl.int64) * T + token) * H + head)[:, None] * WIDTH + column[None, :]
    return x + place, (token < T)[:, None] & (column < WIDTH)[None, :]


@triton.jit
def tokens_of(
    x, source, batch, chunk, head, T, H: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, column
):
    """The same of x whose tokens are not spread: those that lie in the chunk's places."""
    at = chunk * SIZE + tl.arange(0, SIZE)
    token, exists = batch.to(tl.int64) * T + at, at < T
    if source is not None:
        token = tl.load(source + at, mask=exists, other=-1).to(tl.int64)
        exists = token >= 0
    return x + (token * H + head)[:, None] * WIDTH + column[None, :], exists[:, None] & (column < WIDTH)[
        None, :
    ]


@triton.jit
def tile(x, place, WIDTH: tl.constexpr, ROWS: tl.constexpr, row, column):
    """Where a tile of x [places, ROWS, WIDTH] lies, and which of it exists."""
    at = x + place * ROWS * WIDTH + row[:, None] * WIDTH + column[None, :]
    return at, (row < ROWS)[:, None] & (column < WIDTH)[None, :]


@triton.jit
def get(at_and_inside):
    """Load, with zeros outside."""
    return tl.load(at_and_inside[0], mask=at_and_inside[1], other=0.0)


@triton.jit
def put(at_and_inside, x):
    """Store in the recurrent state's dtype."""
    tl.store(at_and_inside[0], x.to(at_and_inside[0].dtype.element_ty), mask=at_and_inside[1])


@triton.jit
def dot(x, y):
    """Float32 x @ y of operands of one dtype."""
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def decay_between(since, SIZE: tl.constexpr, STRICT: tl.constexpr):
    """exp(since_i - since_j) at and below the diagonal (or only below), else 0."""
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    lower = row > column if STRICT else row >= column
    return tl.where(lower, tl.exp(tl.where(lower, since[:, None] - since[None, :], 0.0)), 0.0)


@triton.jit
def to_end(since_place, SIZE: tl.constexpr):
    """Of a chunk: exp(since) of its tokens, decay from each to its end, and of the state across it."""
    since = tl.load(since_place + tl.arange(0, SIZE))
    total = tl.load(since_place + SIZE - 1)
    return tl.exp(since), tl.exp(total - since), tl.exp(total)


@triton.jit
def chunks_of(firsts, sequence, num_chunks):
    """The first chunk of a sequence, and that behind its last."""
    first, stop = 0, num_chunks
    if firsts is not None:
        first, stop = tl.load(firsts + sequence), tl.load(firsts + sequence + 1)
    return first, stop


@triton.jit
def only(at_and_inside, condition):
    """The same tile if the condition holds, else nothing of it."""
    return at_and_inside[0], at_and_inside[1] & condition


@triton.jit(do_not_specialize=["T"])
def _prepare(
    k, v, log_decay, beta, work, since, inverse, values, erased, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SIZE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: its inverse, and the inverse times values and keys."""
    chunk, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = (batch.to(tl.int64) * H + head) * tl.num_programs(0) + chunk
    token, width = tl.arange(0, SIZE), tl.arange(0, BK)
    exists = chunk * SIZE + token < T
    at = (batch.to(tl.int64) * T + chunk * SIZE + token) * H + head
    sums = tl.cumsum(tl.load(log_decay + at, mask=exists, other=0.0), 0)
    strength = tl.load(beta + at, mask=exists, other=0.0)
    tl.store(since + place * SIZE + token, sums)
    keys = get(rows_of(k, batch, chunk, head, T, H, K, SIZE, width))
    met = dot(keys, tl.trans(keys)) * decay_between(sums, SIZE, True) * strength[:, None]
    square = token[:, None] * SIZE + token[None, :]
    work += place * SIZE * SIZE
    tl.store(work + square, met)
    tl.debug_barrier()
    invert_(work, SIZE, PRECISION)
    solve = tl.load(work + square).to(k.dtype.element_ty)
    tl.store(inverse + place * SIZE * SIZE + square, solve)
    grown = keys.to(tl.float32) * (strength * tl.exp(sums))[:, None]
    put(tile(erased, place, K, SIZE, token, width), dot(solve, grown.to(k.dtype.element_ty)))
    for start in tl.static_range(0, V, BV):
        column = start + tl.arange(0, BV)
        x = get(rows_of(v, batch, chunk, head, T, H, V, SIZE, column)).to(tl.float32) * strength[:, None]
        put(tile(values, place, V, SIZE, token, column), dot(solve, x.to(v.dtype.element_ty)))


@triton.jit(do_not_specialize=["T", "num_chunks"])
def _scan(
    k, values, erased, since, recurrent_state, firsts, before, written, last, T, num_chunks,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SIZE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """A block of value columns of one head of a sequence, from chunk to chunk."""
    row, sequence = tl.program_id(1), tl.program_id(2)
    batch, head = row // H, row % H
    token, width = tl.arange(0, SIZE), tl.arange(0, BK)
    column = tl.program_id(0) * BV + tl.arange(0, BV)
    dtype = values.dtype.element_ty
    state = get(only(tile(recurrent_state, row.to(tl.int64), V, K, width, column), sequence == 0))
    first, stop = chunks_of(firsts, sequence, num_chunks)
    for chunk in tl.range(first, stop):
        place = row.to(tl.int64) * num_chunks + chunk
        keys = get(rows_of(k, batch, chunk, head, T, H, K, SIZE, width))
        erase = get(tile(erased, place, K, SIZE, token, width))
        value = get(tile(values, place, V, SIZE, token, column)).to(tl.float32)
        _, decay, across = to_end(since + place * SIZE, SIZE)
        rounded = state.to(dtype)
        put(tile(before, place, V, K, width, column), rounded)
        value -= dot(erase, rounded)
        put(tile(written, place, V, SIZE, token, column), value)
        state = state * across + dot(tl.trans(keys), (value * decay[:, None]).to(dtype))
    is_last = sequence == tl.num_programs(2) - 1
    put(only(tile(last, row.to(tl.int64), V, K, width, column), is_last), state)


@triton.jit(do_not_specialize=["T"])
def _read(
    q, k, since, before, written, source, out, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SIZE: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """What the queries of one chunk read from the recurrent state before it and from each other."""
    chunk, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks: tl.constexpr = (V + BV - 1) // BV
    head = part // blocks
    column = part % blocks * BV + tl.arange(0, BV)
    place = (batch.to(tl.int64) * H + head) * tl.num_programs(0) + chunk
    token, width = tl.arange(0, SIZE), tl.arange(0, BK)
    sums = tl.load(since + place * SIZE + token)
    queries = get(rows_of(q, batch, chunk, head, T, H, K, SIZE, width))
    keys = get(rows_of(k, batch, chunk, head, T, H, K, SIZE, width))
    inner = dot(queries, tl.trans(keys)) * decay_between(sums, SIZE, False)
    total = dot(queries, get(tile(before, place, V, K, width, column))) * tl.exp(sums)[:, None]
    total += dot(inner.to(q.dtype.element_ty), get(tile(written, place, V, SIZE, token, column)))
    put(tokens_of(out, source, batch, chunk, head, T, H, V, SIZE, column), total)
