"""Activations in fp8 with a scale a row, written by what stands before products of fp8 with fp8."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.early import launches_early
from infinitevl.ops.linear.triton.pointwise import as_rows

_FP8_END = tl.constexpr(448.0)


@dataclass(frozen=True)
class Fp8Rows:
    """Activations [..., inputs], each row in fp8 times a scale.

    Attributes:
        data: float8_e4m3fn [rows, inputs]. scale: float32 [rows, 1]. shape: of the activations. dtype: of
            the product that reads them.
    """

    data: Tensor
    scale: Tensor
    shape: torch.Size
    dtype: torch.dtype

    def numel(self) -> int:
        """Number of values."""
        return self.data.numel()

    def dense(self) -> Tensor:
        """The activations that these stand for, [..., inputs]."""
        return (self.data.float() * self.scale).to(self.dtype).view(self.shape)


def _empty(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Fp8Rows:
    rows = shape[:-1].numel()
    data = torch.empty(rows, shape[-1], dtype=torch.float8_e4m3fn, device=device)
    return Fp8Rows(data, torch.empty(rows, 1, dtype=torch.float32, device=device), shape, dtype)


def quantize_rows(x: Tensor) -> Fp8Rows:
    """[..., inputs] in fp8."""
    found, rows = _empty(x.shape, x.dtype, x.device), as_rows(x, x.shape[-1])
    _launch(_quantize_kernel, found, (rows, found.data, found.scale, rows.stride(0)))
    return found


def rms_norm_fp8(
    x: Tensor, weight: Tensor, eps: float, shift: Tensor | None = None
) -> tuple[Fp8Rows, Tensor]:
    """rms_norm(x) in fp8, and x + shift, which lies where x lay if x can be seen as rows.

    Args:
        x: [..., inputs]. weight, shift: [inputs].
    """
    found, rows = _empty(x.shape, x.dtype, x.device), as_rows(x, x.shape[-1])
    _launch(_rms_norm_kernel, found, (rows, weight, shift, found.data, found.scale, rows.stride(0), eps))
    return found, rows.view(x.shape)


def swiglu_fp8(gate_up: Tensor) -> Fp8Rows:
    """[..., 2 I], gates then ups -> SiLU(gate) * up [..., I] in fp8."""
    width = gate_up.shape[-1] // 2
    rows = as_rows(gate_up, 2 * width)
    found = _empty(torch.Size((*gate_up.shape[:-1], width)), gate_up.dtype, gate_up.device)
    _launch(_swiglu_kernel, found, (rows, found.data, found.scale, rows.stride(0)))
    return found


def gated_rms_norm_fp8(out: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Fp8Rows:
    """rms_norm(out) * SiLU(gate) in fp8, normalised head by head.

    Args:
        out: [..., H, V], V a power of two. gate: [..., H V]. weight: [V].
    """
    heads, width = out.shape[-2:]
    found = _empty(gate.shape, gate.dtype, gate.device)
    outs, gates = as_rows(out, heads * width), as_rows(gate, heads * width)
    arguments = (outs, gates, weight, found.data, found.scale, outs.stride(0), gates.stride(0), eps, width)
    _launch(_gated_rms_norm_kernel, found, arguments)
    return found


def _launch(kernel: triton.JITFunction, found: Fp8Rows, arguments: tuple) -> None:
    """Run a kernel that writes one row a program."""
    rows, width = found.data.shape
    block, early = triton.next_power_of_2(width), launches_early(found.data)
    num_warps = max(1, min(16, block // 512))
    kernel[(rows,)](*arguments, width, block, early, num_warps=num_warps, launch_pdl=early)


@triton.jit
def _store(y, data_ptr, scale_ptr, row, k, WIDTH: tl.constexpr):
    """Write a row y, float32 [BLOCK] and 0 beyond its width, and its scale."""
    scale = tl.maximum(tl.max(tl.abs(y)), 1e-30) / _FP8_END
    tl.store(scale_ptr + row, scale)
    tl.store(data_ptr + row * WIDTH + k, (y / scale).to(tl.float8e4nv), mask=k < WIDTH)


@triton.jit
def _quantize_kernel(
    x_ptr, data_ptr, scale_ptr, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(x_ptr + row * x_stride + k, mask=k < WIDTH, other=0).to(tl.float32)
    _store(x, data_ptr, scale_ptr, row, k, WIDTH)


@triton.jit
def _rms_norm_kernel(
    x_ptr, weight_ptr, shift_ptr, data_ptr, scale_ptr, x_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
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
    _store(wide * weight, data_ptr, scale_ptr, row, k, WIDTH)


@triton.jit
def _swiglu_kernel(
    x_ptr, data_ptr, scale_ptr, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(x_ptr + row * x_stride + k, mask=k < WIDTH, other=0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + WIDTH + k, mask=k < WIDTH, other=0).to(tl.float32)
    _store(gate * tl.sigmoid(gate) * up, data_ptr, scale_ptr, row, k, WIDTH)


@triton.jit
def _gated_rms_norm_kernel(
    out_ptr, gate_ptr, weight_ptr, data_ptr, scale_ptr, out_stride, gate_stride, eps, HEAD: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK is a multiple of HEAD, a power of two."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + k % HEAD).to(tl.float32)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    out = tl.load(out_ptr + row * out_stride + k, mask=k < WIDTH, other=0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + k, mask=k < WIDTH, other=0).to(tl.float32)
    heads = tl.reshape(out, [BLOCK // HEAD, HEAD])
    heads *= tl.rsqrt(tl.sum(heads * heads, 1) / HEAD + eps)[:, None]
    y = tl.reshape(heads, [BLOCK]) * weight * (gate * tl.sigmoid(gate))
    _store(y, data_ptr, scale_ptr, row, k, WIDTH)
