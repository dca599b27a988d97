"""Products of a few rows with a weight matrix on the tensor cores: bound by how fast the weights arrive.

The weight is the left side, whose 16 rows a tensor core takes; the few rows of x are its columns. So no tile
is mostly padding, and tiles are small enough that many are on their way at once. SwiGLU and the residual are
done here as well.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.triton.early import launches_early
from infinitevl.ops.triton.few_bits import prefetch
from infinitevl.ops.triton.matvec import Product, Tile

_LINE = 128  # bytes that a prefetch brings into the cache


def few_rows_tile(product: Product) -> Tile:
    """Measured on an H200 for 8 rows: programs for every multiprocessor, 16 KB of weight in each tile."""
    if product.swiglu:
        tile = Tile(32, 128, 2, 3)
    elif product.outputs > 4096:
        tile = Tile(32, 128, 2, 4)
    elif product.inputs % 512 == 0 and product.inputs > 2048:
        tile = Tile(16, 512, 2, 4)
    else:
        tile = Tile(16, 256, 2, 6) if product.inputs > 2048 else Tile(16, 256, 4, 4)
    block_k = min(tile.block_k, max(16, triton.next_power_of_2(product.inputs)))
    wide = 2 if product.stored.element_size() > 2 else 1  # as many bytes of float32
    return Tile(tile.block_n, max(16, block_k // wide), tile.num_warps, tile.num_stages)


def few_rows(product: Product) -> Tensor:
    """The product for up to 16 rows; what x is normalised or gated with was applied before."""
    assert product.norm_weight is None and product.gate is None, "norms and gates are applied before"
    y, tile, stored = product.empty(), few_rows_tile(product), product.stored
    early, pointers = launches_early(stored), product.pointers()
    line = _LINE // stored.element_size()
    lines = max(1, tile.num_stages * tile.block_k // line)
    _few_rows_kernel[(triton.cdiv(product.outputs, tile.block_n),)](
        y_ptr=y, **{name: pointers[name] for name in _ARGUMENTS}, rows=product.num_rows,
        BLOCK_M=8 if product.num_rows <= 8 else 16, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        STAGES=tile.num_stages, LINE=line, LINES=triton.next_power_of_2(lines), EARLY=early,
        num_warps=tile.num_warps, launch_pdl=early,
    )  # fmt: skip
    return y


_ARGUMENTS = (
    "x_ptr", "x_stride", "weight_ptr", "weight_stride", "bias_ptr", "residual_ptr", "residual_stride",
    "outputs", "INPUTS", "SWIGLU",
)  # fmt: skip


@triton.jit
def _tile(ptrs, k, start, INPUTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tile whose columns begin at `start`; 0 beyond the last input. k: its columns, shaped as they lie."""
    if INPUTS % BLOCK_K == 0:
        return tl.load(ptrs + start)
    else:
        return tl.load(ptrs + start, mask=start + k < INPUTS, other=0.0)


@triton.jit
def _few_rows_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    x_stride, weight_stride, residual_stride, outputs, rows,
    INPUTS: tl.constexpr, SWIGLU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of all rows."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    # Outputs and rows beyond the last are the last again, not masked: the loads stay plain.
    row_ptrs = weight_ptr + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * weight_stride
    up_offset = tl.cast(outputs, tl.int64) * weight_stride
    x_ptrs = x_ptr + tl.minimum(m, rows - 1).to(tl.int64)[None, :] * x_stride + k[:, None]
    if EARLY:
        lines = tl.minimum(tl.arange(0, LINES) * LINE, INPUTS - 1)[None, :]
        prefetch(row_ptrs + lines)
        if SWIGLU:
            prefetch(row_ptrs + up_offset + lines)
        gdc_launch_dependents()
        gdc_wait()
    ptrs = row_ptrs + k[None, :]
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    ups = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(0, INPUTS, BLOCK_K, num_stages=STAGES):
        x = _tile(x_ptrs, k[:, None], start, INPUTS, BLOCK_K)
        sums = tl.dot(_tile(ptrs, k[None, :], start, INPUTS, BLOCK_K), x, sums, input_precision="ieee")
        if SWIGLU:
            up = _tile(ptrs + up_offset, k[None, :], start, INPUTS, BLOCK_K)
            ups = tl.dot(up, x, ups, input_precision="ieee")
    inside = n < outputs
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + n, mask=inside, other=0).to(tl.float32)[:, None]
    if SWIGLU:
        if bias_ptr is not None:
            ups += tl.load(bias_ptr + outputs + n, mask=inside, other=0).to(tl.float32)[:, None]
        sums = sums * tl.sigmoid(sums) * ups
    inside = inside[:, None] & (m < rows)[None, :]
    if residual_ptr is not None:
        added = residual_ptr + m[None, :] * residual_stride + n[:, None]
        sums += tl.load(added, mask=inside, other=0).to(tl.float32)
    tl.store(y_ptr + m[None, :] * outputs + n[:, None], sums.to(y_ptr.dtype.element_ty), mask=inside)
