"""Weights in few bits on a GPU: what their bits stand for, inside of kernels and as whole matrices."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.early import launches_early
from infinitevl.ops.linear.quantized import Quantized


def runs_assembly(x: Tensor) -> bool:
    """Whether values are converted by the machine's own instructions, which the interpreter does not know."""
    return x.dtype == torch.bfloat16 and not knobs.runtime.interpret


def dequantize(weight: Quantized) -> Tensor:
    """The weight that `weight` stands for, [outputs, inputs], in memory that is free again after its use."""
    outputs, inputs = weight.shape
    dense = torch.empty(outputs, inputs, dtype=weight.dtype, device=weight.data.device)
    group = weight.group if weight.kind == "int4" else 0
    width, block_k, early = weight.data.shape[1], 256 if group else 1024, launches_early(dense)
    _dequantize_kernel[(triton.cdiv(outputs, 4), triton.cdiv(width, block_k))](
        weight.data, weight.scale, dense, weight.scale.stride(0), outputs, width, inputs,
        group, 4, block_k, early, launch_pdl=early,
    )  # fmt: skip
    return dense


@triton.jit
def prefetch(ptrs):
    """Asks for the lines at these addresses to come into the second-level cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; // $0", "=r,l", [ptrs.to(tl.uint64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.constexpr_function
def num_parts(group):
    """Parts into which a tile of a weight comes apart: a word of 4-bit values holds four pairs."""
    return 4 if group else 1


@triton.jit
def columns(k, part, GROUP: tl.constexpr):
    """The columns of a weight that part `part` of its stored columns holds; k counts pairs as two."""
    if GROUP == 0:
        return k
    else:
        PAIRS: tl.constexpr = GROUP // 4
        return k // PAIRS * GROUP + part * PAIRS + k % PAIRS


@triton.jit
def part_values(tile, part: tl.constexpr, DTYPE: tl.constexpr, GROUP: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The values of a tile [..., K] without scale; of 4-bit values only part `part`, [..., 2 K]."""
    if GROUP == 0 and ASSEMBLY and not tile.dtype.is_fp8():
        return tile.to(DTYPE)
    elif GROUP == 0:
        return tile.to(tl.float32).to(DTYPE)
    elif ASSEMBLY:
        pairs = _pairs(tile, 4 * part)
        first = pairs.to(tl.int16).to(tl.bfloat16, bitcast=True)
        second = (pairs >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        pairs = tl.join(first, second)
        return tl.reshape(pairs, [tile.shape[0], tile.shape[1], 2 * tile.shape[2]])
    else:
        first = (tile >> 4 * part & 15) - 8
        second = (tile >> (4 * part + 16) & 15) - 8
        pairs = tl.join(first, second)
        return tl.reshape(pairs, [tile.shape[0], tile.shape[1], 2 * tile.shape[2]]).to(tl.float32).to(DTYPE)


@triton.jit
def _pairs(tile, place: tl.constexpr):
    """Two bfloat16 in a word: the values are put in the mantissa of 128, and 136 is taken off."""
    bits = ((tile >> place) & 0x000F000F) | 0x43004300
    return tl.inline_asm_elementwise(
        "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [bits, 0x3F803F80, 0xC308C308 - (1 << 32)],
        dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _dequantize_kernel(
    data_ptr, scale_ptr, dense_ptr, scale_stride, outputs, WIDTH: tl.constexpr, INPUTS: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A tile of the weight a program; rounded once, from float32."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    inside = (n < outputs) & (k < WIDTH)
    tile = tl.load(data_ptr + n * WIDTH + k, mask=inside, other=0.0)
    scale_ptrs = scale_ptr + n * scale_stride
    if GROUP > 0:
        scale_ptrs += k // (GROUP // 8)
    scale = tl.load(scale_ptrs, mask=inside, other=0).to(tl.float32)
    if EARLY:  # the memory that is written may still be read by the kernel before
        gdc_launch_dependents()
        gdc_wait()
    if GROUP == 0:
        dense = (tile.to(tl.float32) * scale).to(dense_ptr.dtype.element_ty)
        tl.store(dense_ptr + n * INPUTS + k, dense, mask=inside)
    else:
        for place in tl.static_range(8):
            values = (tile >> (4 * (place // 2) + 16 * (place % 2)) & 15) - 8
            column = columns(2 * k + place % 2, place // 2, GROUP)
            dense = (values.to(tl.float32) * scale).to(dense_ptr.dtype.element_ty)
            tl.store(dense_ptr + n * INPUTS + column, dense, mask=inside & (column < INPUTS))
