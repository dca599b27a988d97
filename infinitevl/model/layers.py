"""The parts that the vision encoder and the decoder share."""

from typing import Any

import torch
from torch import Tensor, nn

from infinitevl.model.fused import Fusable, padded, stack_, widen_


class RMSNorm(Fusable):
    """x / sqrt(mean x^2 + eps) over the last axis, times a weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape and dtype."""
        fast = self._fast()
        kernels = self.kernels if fast is None else fast.kernels
        return kernels.rms_norm(x, self.weight, self.eps)

    def _lay_out(self) -> dict[str, Any]:
        return {}


class GatedRMSNorm(RMSNorm):
    """The same, times SiLU of a gate."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """Two of [..., width] -> the same shape, in the gate's dtype."""
        return self.kernels.gated_rms_norm(x, gate, self.weight, self.eps)


class GatedMLP(Fusable):
    """A norm, SwiGLU and the residual: x + down(SiLU(gate(norm x)) * up(norm x)).

    Args:
        quantizations: in which its weights may be held.
    """

    quantizable = ("gate_up", "down")

    def __init__(self, width: int, inner_width: int, bias: bool, quantizations: tuple[str, ...] = ()):
        super().__init__()
        self.quantizations = quantizations
        self.gate_proj = nn.Linear(width, inner_width, bias=bias)
        self.up_proj = nn.Linear(width, inner_width, bias=bias)
        self.down_proj = nn.Linear(inner_width, width, bias=bias)

    def forward(self, x: Tensor, *, norm: RMSNorm) -> Tensor:
        """[..., width] -> [..., width]."""
        fast = self._fast()
        if fast is None:
            normed = norm(x)
            return x + self.down_proj(self.kernels.swiglu(self.gate_proj(normed), self.up_proj(normed)))
        inputs = norm.weight, norm.eps, fast["gate_up"], fast["gate_up_bias"]
        if self.down_proj.bias is None:
            inner = fast.kernels.norm_swiglu(x, *inputs)
        else:
            inner, x = fast.kernels.norm_swiglu_shift(x, *inputs, self.down_proj.bias)
        return fast.kernels.linear_add(inner, fast["down"], x)

    def _lay_out(self) -> dict[str, Any]:
        pair = (self.gate_proj, self.up_proj)
        rows = padded(self.gate_proj.out_features)
        has_bias = self.gate_proj.bias is not None
        return {
            "gate_up": stack_([proj.weight for proj in pair], rows),
            "gate_up_bias": stack_([proj.bias for proj in pair], rows) if has_bias else None,
            "down": widen_(self.down_proj.weight),
        }
