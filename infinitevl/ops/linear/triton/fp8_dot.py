"""residual += product of fp8 with fp8, for the narrow products at which cuBLAS leaves most of a GPU idle.

Tiles are chosen such that all programs run at once; where tiles are too few for that, the inputs are split,
and a second kernel adds the parts up.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from infinitevl.ops.early import launches_early

_BLOCK_N = 128
_SUM_BLOCK = 1024
_MOST_SPLITS, _LEAST_STEPS = 8, 4  # parts of the inputs; tiles of the inputs in each
_HOPPER_SMS = 132


@dataclass(frozen=True)
class DotTile:
    """Rows, outputs and inputs that a program multiplies at once, and parts of the inputs."""

    block_m: int
    block_k: int
    splits: int
    num_warps: int
    block_n: int = _BLOCK_N
    num_stages: int = 4


def dot_tile(rows: int, outputs: int, inputs: int, num_programs: int = _HOPPER_SMS) -> DotTile:
    """The smallest tile with at most `num_programs` programs, on parts of the inputs if they are few.

    Measured on an H200.

    Microseconds for 2048 outputs, residual included, beside the better of cuBLAS in 8 bits and an addition of
    its own (2 us or more) and cuBLAS in 16 bits: 256 rows of 11008 inputs 15.0 (26.2), 512 rows 20.1 (29.2),
    2048 rows 62.6 (63.5).
    """
    columns = triton.cdiv(outputs, _BLOCK_N)
    for block_m in (64, 128, 256):
        count = triton.cdiv(rows, block_m) * columns
        if count <= num_programs:
            block_k = 256 if block_m == 64 else 128
            most = max(1, triton.cdiv(inputs, block_k) // _LEAST_STEPS)
            splits = min(num_programs // count, most, _MOST_SPLITS)
            return DotTile(block_m, block_k, splits, 4 if block_m == 64 else 8)
    return DotTile(128, 128, 1, 8)


def add_dot_(
    residual: Tensor, x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> None:
    """Add the product of x and weight.T, times both scales, and bias to `residual`, in place.

    Args:
        residual: [rows, outputs], rows of any stride. x: [rows, inputs] and weight: [outputs, inputs],
            contiguous, inputs a multiple of 16, in fp8 (or another dtype that `tl.dot` knows). x_scale:
            float32 [rows, 1]. weight_scale: float32 [outputs, 1]. bias: [outputs].
    """
    (rows, inputs), outputs = x.shape, len(weight)
    tile, early = dot_tile(rows, outputs, inputs, _num_programs(x.device)), launches_early(residual)
    block_k = min(tile.block_k, max(16, triton.next_power_of_2(inputs)))
    part = triton.cdiv(triton.cdiv(inputs, block_k), tile.splits) * block_k
    parts = None
    if tile.splits > 1:
        parts = torch.empty(tile.splits, rows, outputs, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(rows, tile.block_m) * triton.cdiv(outputs, tile.block_n), tile.splits)
    _dot_kernel[grid](
        TensorDescriptor.from_tensor(x, [tile.block_m, block_k]),
        TensorDescriptor.from_tensor(weight, [tile.block_n, block_k]),
        x_scale, weight_scale, bias, residual, parts, residual.stride(0), rows, outputs,
        PART=part, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=block_k, EARLY=early,
        num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=early,
    )  # fmt: skip
    if parts is not None:
        block = min(_SUM_BLOCK, triton.next_power_of_2(outputs))
        _sum_kernel[(rows, triton.cdiv(outputs, block))](
            parts, x_scale, weight_scale, bias, residual, residual.stride(0), rows, outputs,
            SPLITS=tile.splits, BLOCK=block, EARLY=early, num_warps=4, launch_pdl=early,
        )  # fmt: skip


@cache
def _num_programs(device: torch.device) -> int:
    """Programs that run at once, one on each multiprocessor."""
    if device.type != "cuda":
        return _HOPPER_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _dot_kernel(
    x_desc, weight_desc, x_scale_ptr, weight_scale_ptr, bias_ptr, residual_ptr, parts_ptr,
    residual_stride, rows, outputs, PART: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One tile of the product over one part of the inputs; descriptors give 0 beyond the last input."""
    num_m = tl.cdiv(rows, BLOCK_M)
    first_m = tl.program_id(0) % num_m * BLOCK_M
    first_n = tl.program_id(0) // num_m * BLOCK_N
    start = tl.program_id(1) * PART
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in tl.range(start, start + PART, BLOCK_K):
        x = x_desc.load([first_m, k])
        weight = weight_desc.load([first_n, k])
        sums = tl.dot(x, weight.T, sums, input_precision="ieee")
    m, n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
    inside = (m < rows)[:, None] & (n < outputs)[None, :]
    if parts_ptr is not None:
        row = (tl.program_id(1) * rows + m).to(tl.int64)
        tl.store(parts_ptr + row[:, None] * outputs + n[None, :], sums, mask=inside)
    else:
        x_scale = tl.load(x_scale_ptr + m, mask=m < rows, other=0)[:, None]
        weight_scale = tl.load(weight_scale_ptr + n, mask=n < outputs, other=0)[None, :]
        ptrs = residual_ptr + m.to(tl.int64)[:, None] * residual_stride + n[None, :]
        y = sums * x_scale * weight_scale + tl.load(ptrs, mask=inside, other=0).to(tl.float32)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + n, mask=n < outputs, other=0).to(tl.float32)[None, :]
        tl.store(ptrs, y.to(residual_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sum_kernel(
    parts_ptr, x_scale_ptr, weight_scale_ptr, bias_ptr, residual_ptr, residual_stride, rows, outputs,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A block of one row."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    weight_scale = tl.load(weight_scale_ptr + n, mask=n < outputs, other=0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    sums = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        sums += tl.load(parts_ptr + (split * rows + row) * outputs + n, mask=n < outputs, other=0)
    ptrs = residual_ptr + row * residual_stride + n
    y = sums * tl.load(x_scale_ptr + row) * weight_scale + tl.load(ptrs, mask=n < outputs, other=0).to(
        tl.float32
    )
    if bias_ptr is not None:
        y += tl.load(bias_ptr + n, mask=n < outputs, other=0).to(tl.float32)
    tl.store(ptrs, y.to(residual_ptr.dtype.element_ty), mask=n < outputs)
