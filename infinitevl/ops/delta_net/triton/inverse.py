"""The inverse of 1 + A for a strictly lower triangular A [64, 64]: how the tokens of a chunk read each other.

Every entry of every step is bounded by what one key may recall of another (at most 1), however alike the keys
are; powers of A would not be.
"""

import triton
import triton.language as tl

from infinitevl.ops.delta_net.triton.parts import halves, product


@triton.jit
def invert_(square, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """In place, [64, 64] float32 at `square`: of a strictly lower triangular A the inverse of 1 + A.

    Blocks of 16 on the diagonal by substitution, then merged in pairs. Blocks travel through memory: kept in
    registers, in products of 64 x 64, they came out wrong (triton 3.6).
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
def solve_(square, BLOCK: tl.constexpr, SIZE: tl.constexpr):
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
def merge_pairs_(square, WIDTH: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """The same as `_merge_`, all pairs at once."""
    part = tl.arange(0, WIDTH)[:, None] * SIZE + tl.arange(0, WIDTH)[None, :]
    pair = tl.arange(0, SIZE // (2 * WIDTH)) * (2 * WIDTH * (SIZE + 1))
    upper = square + pair[:, None, None] + part[None, :, :]
    corner = upper + WIDTH * SIZE
    met = _exact(tl.load(corner), tl.load(upper), PRECISION)
    found = _exact(tl.load(upper + WIDTH * (SIZE + 1)), met, PRECISION)
    tl.debug_barrier()
    tl.store(corner, -found)
    tl.debug_barrier()


@triton.jit
def store_inverse(square, out, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """From inverses of the two blocks on the diagonal of `square` to the whole, split, in `out`."""
    WIDTH: tl.constexpr = SIZE // 2
    part = tl.arange(0, WIDTH)[:, None] * SIZE + tl.arange(0, WIDTH)[None, :]
    upper, lower = tl.load(square + part), tl.load(square + WIDTH * (SIZE + 1) + part)
    corner = _exact(lower, _exact(tl.load(square + WIDTH * SIZE + part), upper, PRECISION), PRECISION)
    distance: tl.constexpr = SIZE * SIZE
    store_split(out + part, upper, distance, PRECISION)
    store_split(out + WIDTH + part, tl.zeros((WIDTH, WIDTH), tl.float32), distance, PRECISION)
    store_split(out + WIDTH * SIZE + part, -corner, distance, PRECISION)
    store_split(out + WIDTH * (SIZE + 1) + part, lower, distance, PRECISION)


@triton.jit
def _exact(x, y, PRECISION: tl.constexpr):
    """x @ y for float32 blocks, or stacks of them."""
    return tl.dot(x, y, input_precision="tf32x3" if PRECISION == "split" else PRECISION)


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
def store_split(place, x, distance, PRECISION: tl.constexpr):
    """x in float32, or as the sum of two bfloat16, the second `distance` further on."""
    if PRECISION == "split":
        high, low = halves(x)
        tl.store(place, high)
        tl.store(place + distance, low)
    else:
        tl.store(place, x)
