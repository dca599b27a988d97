"""The product of one row with a weight in 4 bits, on the ordinary cores, with what stands around it."""

import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.early import launches_early
from infinitevl.ops.linear.quantized import Quantized
from infinitevl.ops.linear.triton.matvec import Product, Tile

_PER_WORD = tl.constexpr(8)


def int4_tile(product: Product) -> Tile:
    """Measured on an H200; block_k counts words of eight values."""
    words = triton.next_power_of_2(product.stored.shape[1])
    if product.inputs > 4096:
        return Tile(8, min(words, 512), 4)
    if product.outputs > 8192:
        return Tile(4 if product.swiglu else 8, min(words, 256), 2)
    return Tile(4, min(words, 512), 4)


def matvec_int4(product: Product) -> Tensor:
    """The product for one row; no gate."""
    assert product.num_rows == 1 and product.gate is None and isinstance(product.weight, Quantized)
    y, tile, early = product.empty(), int4_tile(product), launches_early(product.stored)
    given = product.pointers()
    for name in ("x_stride", "residual_stride", "gate_ptr", "gate_stride"):
        del given[name]
    _matvec_int4_kernel[(triton.cdiv(product.outputs, tile.block_n),)](
        y_ptr=y, **given, scale_stride=product.weight.scale.stride(0),
        WORDS=product.stored.shape[1], GROUP=product.weight.group,
        BLOCK_N=tile.block_n, BLOCK_W=tile.block_k, EARLY=early, ASSEMBLY=not knobs.runtime.interpret,
        num_warps=tile.num_warps, launch_pdl=early,
    )  # fmt: skip
    return y


@triton.jit
def _words(ptrs, w, start: tl.constexpr, WORDS: tl.constexpr, BLOCK_W: tl.constexpr):
    """One tile of the weight, 0 beyond its last word."""
    if start + BLOCK_W <= WORDS:
        return tl.load(ptrs + start, eviction_policy="evict_first")
    else:
        return tl.load(ptrs + start, mask=start + w[None, :] < WORDS, other=0, eviction_policy="evict_first")


@triton.jit
def _pair(words, PLACE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Two neighbours out of each word, in float32, without scale.

    The values are put in the mantissas of two bfloat16 that say 128, and 136 is taken off.
    """
    if ASSEMBLY:
        bits = ((words >> (4 * PLACE)) & 0x000F000F) | 0x43004300
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 pair, one, off;
            mov.b32 one, 0x3F803F80;
            mov.b32 off, 0xC308C308;
            fma.rn.bf16x2 pair, $2, one, off;
            shl.b32 $0, pair, 16;
            and.b32 $1, pair, 0xFFFF0000;
            }""",
            "=r,=r,r", [bits], dtype=(tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip
    first = ((words >> (4 * PLACE)) & 15) - 8
    second = ((words >> (4 * PLACE + 16)) & 15) - 8
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _inputs(x_ptr, norm_ptr, column, inside, INPUTS: tl.constexpr):
    """Values of x and their squares; with a norm, values times its weight."""
    inside = inside & (column < INPUTS)
    x = tl.load(x_ptr + column, mask=inside, other=0).to(tl.float32)
    square = x * x
    if norm_ptr is not None:
        x *= tl.load(norm_ptr + column, mask=inside, other=0).to(tl.float32)
    return x, square


@triton.jit
def _matvec_int4_kernel(
    x_ptr, norm_ptr, weight_ptr, scale_ptr, bias_ptr, residual_ptr, y_ptr,
    weight_stride, scale_stride, outputs, eps,
    INPUTS: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr, SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, EARLY: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs; the next tile of the weight is on its way while one is summed."""
    PAIRS: tl.constexpr = GROUP // _PER_WORD  # words of a group, each with one pair of each place
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    w = tl.arange(0, BLOCK_W)
    row = tl.minimum(n, outputs - 1).to(tl.int64)[:, None]  # beyond the last the last again, not masked
    ptrs = weight_ptr + row * weight_stride + w[None, :]
    up_ptrs = ptrs + tl.cast(outputs, tl.int64) * weight_stride
    scale_ptrs = scale_ptr + row * scale_stride
    up_scale_ptrs = scale_ptrs + tl.cast(outputs, tl.int64) * scale_stride
    next_tile = _words(ptrs, w, 0, WORDS, BLOCK_W)
    if SWIGLU:
        next_up = _words(up_ptrs, w, 0, WORDS, BLOCK_W)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    sums = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
    ups = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
    squares = tl.zeros([BLOCK_W], tl.float32)
    for start in tl.static_range(0, WORDS, BLOCK_W):
        tile = next_tile
        if SWIGLU:
            up_tile = next_up
        if start + BLOCK_W < WORDS:
            next_tile = _words(ptrs, w, start + BLOCK_W, WORDS, BLOCK_W)
            if SWIGLU:
                next_up = _words(up_ptrs, w, start + BLOCK_W, WORDS, BLOCK_W)
        inside = start + w < WORDS
        group = (start + w) // PAIRS
        column = group * GROUP + 2 * ((start + w) % PAIRS)
        part = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
        up_part = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
        for place in tl.static_range(4):
            x, square = _inputs(x_ptr, norm_ptr, column + 2 * PAIRS * place, inside, INPUTS)
            next_x, next_square = _inputs(x_ptr, norm_ptr, column + 2 * PAIRS * place + 1, inside, INPUTS)
            squares += square + next_square
            first, second = _pair(tile, place, ASSEMBLY)
            part += first * x[None, :] + second * next_x[None, :]
            if SWIGLU:
                first, second = _pair(up_tile, place, ASSEMBLY)
                up_part += first * x[None, :] + second * next_x[None, :]
        scale = tl.load(scale_ptrs + group[None, :], mask=inside[None, :], other=0).to(tl.float32)
        sums += part * scale
        if SWIGLU:
            scale = tl.load(up_scale_ptrs + group[None, :], mask=inside[None, :], other=0).to(tl.float32)
            ups += up_part * scale
    factor = 1.0
    if norm_ptr is not None:
        factor = tl.rsqrt(tl.sum(squares) / INPUTS + eps)
    y = tl.sum(sums, 1) * factor
    if bias_ptr is not None:
        y += tl.load(bias_ptr + n, mask=n < outputs, other=0).to(tl.float32)
    if SWIGLU:
        up = tl.sum(ups, 1) * factor
        if bias_ptr is not None:
            up += tl.load(bias_ptr + outputs + n, mask=n < outputs, other=0).to(tl.float32)
        y = y * tl.sigmoid(y) * up
    if residual_ptr is not None:
        y += tl.load(residual_ptr + n, mask=n < outputs, other=0).to(tl.float32)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=n < outputs)
