"""The parts that the vision encoder and the decoder share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinitevl.ops.norm import gated_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) over the last axis, times a weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)


class GatedRMSNorm(RMSNorm):
    """The same, times SiLU of a gate."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """Two of [..., width] -> the same shape, in the gate's dtype."""
        return gated_rms_norm(x, gate, self.weight, self.eps)


class GatedMLP(nn.Module):
    """SwiGLU: down(SiLU(gate(x)) * up(x))."""

    def __init__(self, width: int, inner_width: int, bias: bool):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner_width, bias=bias)
        self.up_proj = nn.Linear(width, inner_width, bias=bias)
        self.down_proj = nn.Linear(inner_width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
