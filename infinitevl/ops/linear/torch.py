"""Norms, and matrix products with the point-wise work around them: norms before, gates and residuals after.

Norms sum in float32 and return the input's dtype. Weights are those of `nn.Linear`, [outputs, inputs], or
stand for one in few bits; x is [..., inputs].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.linear.quantized import Weight, dense


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean x^2 + eps) over the last axis, times `weight`; same shape and dtype as x."""
    wide = _wide(x)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rms_norm(x) * SiLU(gate), both [..., V]; computed in float32, returned in gate's dtype."""
    wide = _wide(x)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)
    return (wide * F.silu(_wide(gate))).to(gate.dtype)


def l2_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(sum x^2 + eps) over the last axis, in float32."""
    wide = _wide(x)
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """The product alone."""
    return F.linear(x, dense(weight), bias)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) * up."""
    return F.silu(gate) * up


def norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
) -> Tensor:
    """The product of rms_norm(x)."""
    return F.linear(rms_norm(x, norm_weight, eps), dense(weight), bias)


def norm_swiglu(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
) -> Tensor:
    """SiLU(gate) * up of rms_norm(x); weight holds the rows of the gate, then as many of up."""
    return swiglu(*F.linear(rms_norm(x, norm_weight, eps), dense(weight), bias).chunk(2, dim=-1))


def norm_linear_shift(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`norm_linear`, and x + shift, which other kernels put where x was."""
    return norm_linear(x, norm_weight, eps, weight, bias), x + shift


def norm_swiglu_shift(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`norm_swiglu`, and x + shift, which other kernels put where x was."""
    return norm_swiglu(x, norm_weight, eps, weight, bias), x + shift


def linear_add(x: Tensor, weight: Weight, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """residual + the product; other kernels may put the result where the residual was."""
    return residual + F.linear(x, dense(weight), bias)


def gated_norm_linear_add(
    out: Tensor, gate: Tensor, norm_weight: Tensor, eps: float, weight: Weight, residual: Tensor
) -> Tensor:
    """residual + the product of rms_norm(out) * SiLU(gate), normalised head by head.

    Args:
        out: [B, T, H, V]. gate: [B, T, H V]. norm_weight: [V]. residual: [B, T, outputs].
    """
    normed = gated_rms_norm(out, gate.unflatten(-1, out.shape[-2:]), norm_weight, eps)
    return residual + F.linear(normed.flatten(2), dense(weight))
