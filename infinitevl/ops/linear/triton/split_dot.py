"""Products of a few rows with a weight matrix on the tensor cores, weights in few bits among them.

The inputs are split over the warps of a program, as the batch of a batched product: each warp brings its own
part of the weight into the shape that tensor cores take, and none does another's work. The weight is the left
side, whose 16 rows it fills; the few rows of x are the right side, which may be one column.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.early import launches_early
from infinitevl.ops.linear.quantized import Quantized
from infinitevl.ops.linear.triton.few_bits import columns, num_parts, part_values, prefetch, runs_assembly
from infinitevl.ops.linear.triton.matvec import Product
from infinitevl.ops.linear.triton.pointwise import as_rows


@dataclass(frozen=True)
class SplitTile:
    """What a program works on at once.

    block_n: outputs. block_k: stored columns of the weight, for each of `split` parts of the inputs.
    num_warps: at most `split`. num_stages: tiles on their way. block_m: least rows, a power of two.
    """

    block_n: int
    block_k: int
    split: int = 4
    num_warps: int = 4
    num_stages: int = 4
    block_m: int = 1


def split_tile(product: Product) -> SplitTile:
    """Outputs enough for every multiprocessor; of 4-bit weights a group for each part of the inputs.

    Tiles on their way, of x too, fit into 100 KB of shared memory, which smaller GPUs have.
    """
    weight, rows = product.weight, product.num_rows
    block_n = 16 if product.outputs <= 4096 else 32
    num_stages = 4 if rows <= 4 else 3 if rows <= 16 else 2
    if isinstance(weight, Quantized) and weight.kind == "int4":
        return SplitTile(block_n, weight.group // 8, num_stages=num_stages)
    block_k = max(16, min(64, triton.next_power_of_2(product.inputs) // 4))
    return SplitTile(block_n, block_k, num_stages=num_stages)


def split_dot(product: Product) -> Tensor:
    """The product for a few rows, up to 64; no gate."""
    assert product.gate is None, "gates are applied before"
    y, tile, weight, stored = product.empty(), split_tile(product), product.weight, product.stored
    scale = weight.scale if isinstance(weight, Quantized) else None
    group = weight.group if isinstance(weight, Quantized) and weight.kind == "int4" else 0
    x, early = as_rows(product.x, product.inputs), launches_early(stored)
    residual = None if product.residual is None else as_rows(product.residual, product.outputs)
    lines = tile.num_stages * tile.split * tile.block_k * stored.element_size() // 128
    _split_dot_kernel[(triton.cdiv(product.outputs, tile.block_n),)](
        x, product.norm_weight, stored, scale, product.bias, residual, y,
        x.stride(0), stored.stride(0), 0 if scale is None else scale.stride(0),
        0 if residual is None else residual.stride(0), product.outputs, product.eps, product.num_rows,
        INPUTS=product.inputs, WIDTH=stored.shape[1], GROUP=group, SWIGLU=product.swiglu,
        BLOCK_M=max(tile.block_m, triton.next_power_of_2(product.num_rows)), BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k, SPLIT=tile.split, STAGES=tile.num_stages,
        LINES=triton.next_power_of_2(max(1, lines)), ASSEMBLY=runs_assembly(x), EARLY=early,
        num_warps=tile.num_warps, launch_pdl=early,
    )  # fmt: skip
    return y


@triton.jit
def _tile(row_ptrs, at, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """[S, N, K] of the weight, 0 beyond its last column; at [S, K] are its columns."""
    if WIDTH % TILE == 0:
        return tl.load(row_ptrs + at[:, None, :])
    else:
        return tl.load(row_ptrs + at[:, None, :], mask=(at < WIDTH)[:, None, :], other=0.0)


@triton.jit
def _scales(scale_ptrs, start, WIDTH: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr,
            SPLIT: tl.constexpr):  # fmt: skip
    """Of 4-bit weights: the scales [S, N, 1] of the groups at `start`."""
    group = (start + tl.arange(0, SPLIT) * BLOCK_K) // (GROUP // 8)
    inside = group < WIDTH // (GROUP // 8)
    return tl.load(scale_ptrs + group[:, None, None], mask=inside[:, None, None], other=0).to(tl.float32)


@triton.jit
def _split_dot_kernel(
    x_ptr, norm_ptr, weight_ptr, scale_ptr, bias_ptr, residual_ptr, y_ptr,
    x_stride, weight_stride, scale_stride, residual_stride, outputs, eps, rows,
    INPUTS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, SWIGLU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    STAGES: tl.constexpr, LINES: tl.constexpr, ASSEMBLY: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of all rows."""
    TILE: tl.constexpr = SPLIT * BLOCK_K
    PARTS: tl.constexpr = num_parts(GROUP)
    PART_K: tl.constexpr = BLOCK_K if GROUP == 0 else 2 * BLOCK_K
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    s = tl.arange(0, SPLIT)[:, None]
    # Outputs and rows beyond the last are the last again, not masked: the loads stay plain.
    row = tl.minimum(n, outputs - 1).to(tl.int64)[None, :, None]
    row_ptrs = weight_ptr + row * weight_stride
    up_offset = tl.cast(outputs, tl.int64) * weight_stride
    scale_ptrs = scale_ptr
    up_scale_offset = 0
    if scale_ptr is not None:
        scale_ptrs = scale_ptr + row * scale_stride
        up_scale_offset = tl.cast(outputs, tl.int64) * scale_stride
    if EARLY:
        LINE: tl.constexpr = 128 // (weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
        lines = tl.minimum(tl.arange(0, LINES) * LINE, WIDTH - 1)[None, None, :]
        prefetch(row_ptrs + lines)
        if SWIGLU:
            prefetch(row_ptrs + up_offset + lines)
    if GROUP > 0:
        next_scale = _scales(scale_ptrs, 0, WIDTH, GROUP, BLOCK_K, SPLIT)
        if SWIGLU:
            next_up_scale = _scales(scale_ptrs + up_scale_offset, 0, WIDTH, GROUP, BLOCK_K, SPLIT)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    x_ptrs = x_ptr + tl.minimum(m, rows - 1).to(tl.int64)[None, None, :] * x_stride
    sums = tl.zeros([SPLIT, BLOCK_N, BLOCK_M], tl.float32)
    ups = tl.zeros([SPLIT, BLOCK_N, BLOCK_M], tl.float32)
    squares = tl.zeros([SPLIT, PART_K, BLOCK_M], tl.float32)
    for start in tl.range(0, WIDTH, TILE, num_stages=STAGES):
        at = start + s * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        tile = _tile(row_ptrs, at, WIDTH, TILE)
        if SWIGLU:
            up_tile = _tile(row_ptrs + up_offset, at, WIDTH, TILE)
        pair = (start + s * BLOCK_K) * (PART_K // BLOCK_K) + tl.arange(0, PART_K)[None, :]
        if GROUP > 0:
            whole_sums, whole_ups = sums, ups
            sums = tl.zeros([SPLIT, BLOCK_N, BLOCK_M], tl.float32)
            ups = tl.zeros([SPLIT, BLOCK_N, BLOCK_M], tl.float32)
        for part in tl.static_range(PARTS):
            k = columns(pair, part, GROUP)[:, :, None]
            if WIDTH % TILE == 0 and (GROUP == 0 or INPUTS % GROUP == 0):
                x = tl.load(x_ptrs + k)
            else:
                x = tl.load(x_ptrs + k, mask=k < INPUTS, other=0)
            if norm_ptr is not None:
                wide = x.to(tl.float32)
                squares += wide * wide
                norm = tl.load(norm_ptr + k, mask=k < INPUTS, other=0).to(tl.float32)
                x = (wide * norm).to(x.dtype)
            weight = part_values(tile, part, x.dtype, GROUP, ASSEMBLY)
            sums = tl.dot(weight, x, sums, input_precision="ieee")
            if SWIGLU:
                up_weight = part_values(up_tile, part, x.dtype, GROUP, ASSEMBLY)
                ups = tl.dot(up_weight, x, ups, input_precision="ieee")
        if GROUP > 0:
            sums = whole_sums + sums * next_scale
            next_scale = _scales(scale_ptrs, start + TILE, WIDTH, GROUP, BLOCK_K, SPLIT)
            if SWIGLU:
                ups = whole_ups + ups * next_up_scale
                next_up_scale = _scales(
                    scale_ptrs + up_scale_offset, start + TILE, WIDTH, GROUP, BLOCK_K, SPLIT
                )
    inside = (n < outputs)[:, None] & (m < rows)[None, :]
    factor = tl.full([1, BLOCK_M], 1.0, tl.float32)
    if norm_ptr is not None:
        factor = tl.rsqrt(tl.sum(tl.sum(squares, 0), 0) / INPUTS + eps)[None, :]
    y = tl.sum(sums, 0) * factor
    last = tl.minimum(n, outputs - 1)
    if scale_ptr is not None and GROUP == 0:
        y *= tl.load(scale_ptr + last * scale_stride)[:, None]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + last).to(tl.float32)[:, None]
    if SWIGLU:
        up = tl.sum(ups, 0) * factor
        if scale_ptr is not None and GROUP == 0:
            up *= tl.load(scale_ptr + (outputs + last) * scale_stride)[:, None]
        if bias_ptr is not None:
            up += tl.load(bias_ptr + outputs + last).to(tl.float32)[:, None]
        y = y * tl.sigmoid(y) * up
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + m[None, :] * residual_stride + n[:, None], mask=inside, other=0)
        y += residual.to(tl.float32)
    tl.store(y_ptr + m[None, :] * outputs + n[:, None], y.to(y_ptr.dtype.element_ty), mask=inside)
