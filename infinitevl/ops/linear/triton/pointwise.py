"""Point-wise kernels: norms and gates, one pass over their input, float32 inside."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.early import launches_early

_SWIGLU_BLOCK = 1024
_GATED_BLOCK = 1024


def as_rows(x: Tensor, width: int) -> Tensor:
    """[..., width] as [rows, width] whose last stride is 1; a view wherever one exists."""
    x = x.reshape(-1, width)
    return x if x.stride(1) == 1 or width == 1 else x.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean x^2 + eps) over the last axis, times `weight`; rounded as `ops.linear.torch` rounds."""
    return _rms_norm(x, weight, eps, None)[0]


def rms_norm_shift(x: Tensor, weight: Tensor, eps: float, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and x + shift, which lies where x lay if x can be seen as rows."""
    return _rms_norm(x, weight, eps, shift)


def _rms_norm(x: Tensor, weight: Tensor, eps: float, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    rows = as_rows(x, width)
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    block, early = triton.next_power_of_2(width), launches_early(x)
    _rms_norm_kernel[(rows.shape[0],)](
        rows, weight, shift, y, rows.stride(0), eps, width, block, early,
        num_warps=_num_warps(block), launch_pdl=early,
    )  # fmt: skip
    return y, rows.view(x.shape)


def swiglu(gate_up: Tensor) -> Tensor:
    """[..., 2 I], gates then ups -> SiLU(gate) * up [..., I]."""
    width = gate_up.shape[-1] // 2
    rows = as_rows(gate_up, 2 * width)
    y = gate_up.new_empty(*gate_up.shape[:-1], width)
    block, early = min(triton.next_power_of_2(width), _SWIGLU_BLOCK), launches_early(gate_up)
    _swiglu_kernel[(rows.shape[0], triton.cdiv(width, block))](
        rows, y, rows.stride(0), width, block, early, num_warps=_num_warps(block), launch_pdl=early
    )
    return y


def add_bias_(x: Tensor, bias: Tensor) -> None:
    """Add bias [width] to each row of x [rows, width], in place."""
    rows, width = x.shape
    block, early = min(triton.next_power_of_2(width), _SWIGLU_BLOCK), launches_early(x)
    _add_bias_kernel[(rows, triton.cdiv(width, block))](
        x, bias, x.stride(0), width, block, early, num_warps=_num_warps(block), launch_pdl=early
    )


def gated_rms_norm(out: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rms_norm(out) * SiLU(gate), normalised head by head.

    Args:
        out: [..., H, V]. gate: [..., H V]. weight: [V].

    Returns:
        [..., H V] in the gate's dtype.
    """
    heads, width = out.shape[-2:]
    out, gates = as_rows(out, heads * width), as_rows(gate, heads * width)
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    block_v, early = triton.next_power_of_2(width), launches_early(gate)
    block_h = max(1, min(triton.next_power_of_2(heads), _GATED_BLOCK // block_v))
    _gated_rms_norm_kernel[(out.shape[0], triton.cdiv(heads, block_h))](
        out, gates, weight, y, out.stride(0), gates.stride(0), eps, heads, width, block_h, block_v, early,
        num_warps=_num_warps(block_h * block_v), launch_pdl=early,
    )  # fmt: skip
    return y


def _num_warps(block: int) -> int:
    """A thread for every 8 elements: one load of 16 bytes in bfloat16."""
    return max(1, min(8, block // 256))


@triton.jit
def _rms_norm_kernel(
    x_ptr, weight_ptr, shift_ptr, y_ptr, x_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One row a program."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + k, mask=k < WIDTH, other=0).to(tl.float32)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + row * x_stride + k, mask=k < WIDTH, other=0)
    wide = x.to(tl.float32)
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + k, mask=k < WIDTH, other=0).to(tl.float32)
        tl.store(x_ptr + row * x_stride + k, (wide + shift).to(x.dtype), mask=k < WIDTH)
    wide *= tl.rsqrt(tl.sum(wide * wide) / WIDTH + eps)
    y = weight * wide.to(x.dtype).to(tl.float32)
    tl.store(y_ptr + row * WIDTH + k, y.to(y_ptr.dtype.element_ty), mask=k < WIDTH)


@triton.jit
def _swiglu_kernel(
    x_ptr, y_ptr, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """A block of one row a program."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(x_ptr + row * x_stride + i, mask=i < WIDTH, other=0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + WIDTH + i, mask=i < WIDTH, other=0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * WIDTH + i, y.to(y_ptr.dtype.element_ty), mask=i < WIDTH)


@triton.jit
def _add_bias_kernel(
    x_ptr, bias_ptr, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    """A block of one row a program."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    bias = tl.load(bias_ptr + i, mask=i < WIDTH, other=0).to(tl.float32)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    x_ptr += row * x_stride + i
    x = tl.load(x_ptr, mask=i < WIDTH, other=0).to(tl.float32)
    tl.store(x_ptr, (x + bias).to(x_ptr.dtype.element_ty), mask=i < WIDTH)


@triton.jit
def _gated_rms_norm_kernel(
    out_ptr, gate_ptr, weight_ptr, y_ptr, out_stride, gate_stride, eps, HEADS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_V: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A few heads of one row a program."""
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    v = tl.arange(0, BLOCK_V)[None, :]
    inside = (h < HEADS) & (v < WIDTH)
    i = h * WIDTH + v
    weight = tl.load(weight_ptr + v, mask=v < WIDTH, other=0).to(tl.float32)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    out = tl.load(out_ptr + row * out_stride + i, mask=inside, other=0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + i, mask=inside, other=0).to(tl.float32)
    normed = out * tl.rsqrt(tl.sum(out * out, 1) / WIDTH + eps)[:, None] * weight
    y = normed * (gate * tl.sigmoid(gate))
    tl.store(y_ptr + row * HEADS * WIDTH + i, y.to(y_ptr.dtype.element_ty), mask=inside)
