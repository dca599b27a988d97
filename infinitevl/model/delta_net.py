"""Gated DeltaNet: linear attention whose recurrent state is a matrix that is decayed, corrected and read.

Each token writes beta (v - what the state already says about k) under its key and reads with its query. There
is no position encoding: order enters through the decay and a short causal convolution.
"""

from typing import Any

import torch
from torch import Tensor, nn

from infinitevl.config import InfiniteVLTextConfig
from infinitevl.model.fused import Fusable, stack_
from infinitevl.model.layers import GatedRMSNorm, RMSNorm
from infinitevl.ops.packed import Packed
from infinitevl.state import DeltaState


class CausalConv1d(nn.Module):
    """The weight [C, 1, W] of one depth-wise convolution; the layer runs all three as one."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, width))

    def forward(self) -> Tensor:
        """The weight; asked for by a call so that weights kept elsewhere arrive in time."""
        return self.weight


class GatedDeltaNet(Fusable):
    """One Gated DeltaNet layer of the decoder (spec: "Gated DeltaNet layer"; paper, section 3)."""

    quantizable = ("in", "out")

    def __init__(self, config: InfiniteVLTextConfig):
        super().__init__()
        hidden, heads = config.hidden_size, config.num_linear_heads
        self.key_width, self.value_width = config.linear_head_dim, config.linear_value_dim
        self.conv_size = config.conv_size
        self.q_proj = nn.Linear(hidden, config.key_dim, bias=False)
        self.k_proj = nn.Linear(hidden, config.key_dim, bias=False)
        self.v_proj = nn.Linear(hidden, config.value_dim, bias=False)
        self.a_proj = nn.Linear(hidden, heads, bias=False)
        self.b_proj = nn.Linear(hidden, heads, bias=False)
        self.g_proj = nn.Linear(hidden, config.value_dim, bias=False)
        self.o_proj = nn.Linear(config.value_dim, hidden, bias=False)
        self.q_conv1d = CausalConv1d(config.key_dim, config.conv_size)
        self.k_conv1d = CausalConv1d(config.key_dim, config.conv_size)
        self.v_conv1d = CausalConv1d(config.value_dim, config.conv_size)
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.o_norm = GatedRMSNorm(config.linear_value_dim, config.norm_eps)
        self.channels = 2 * config.key_dim + config.value_dim

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        state: DeltaState | None = None,
        length: Tensor | None = None,
        num_valid: Tensor | None = None,
        one_token: bool = False,
        rows: Tensor | None = None,
        packed: Packed | None = None,
        *,
        norm: RMSNorm,
    ) -> Tensor:
        """x + mixed norm(x), [B, T, C]; every mixer is called alike, and this one needs no angles, no length.

        Args:
            state: takes the tokens in, in place; None reads a sequence from its start.
            num_valid: int64 [B], how many of each row's first tokens count; None for all.
            one_token: T is 1 and every row counts.
            rows: int64 [B], which rows of the state go on; None for all.
            packed: without a state, the sequences that share the one row; None for one a row.
        """
        mixed, gate, a, b = self._project(x, norm)
        out = self._remember(mixed, a, b, state, num_valid, one_token, rows, packed)
        return self._output(out, gate, x)

    def _project(self, x: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, T, C'], the output's gate [B, T, H V], and a, b [B, T, H]."""
        heads, fast = self.A_log.shape[0], self._fast()
        if fast is not None:
            together = fast.kernels.norm_linear(x, norm.weight, norm.eps, fast["in"])
            sizes = [self.channels, heads * self.value_width, heads, heads]
            mixed, gate, a, b = together.split(sizes, dim=-1)
            return mixed, gate, a, b
        x = norm(x)
        mixed = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)
        return mixed, self.g_proj(x), self.a_proj(x), self.b_proj(x)

    def _remember(
        self,
        mixed: Tensor,
        a: Tensor,
        b: Tensor,
        state: DeltaState | None,
        num_valid: Tensor | None,
        one_token: bool,
        rows: Tensor | None,
        packed: Packed | None,
    ) -> Tensor:
        """What the queries read from the recurrent state, [B, T, H, V]."""
        fast = self._fast()
        kernels = self.kernels if fast is None else fast.kernels
        inputs = (mixed, a, b, self._conv_weight(), self.A_log, self.dt_bias)
        if state is None:
            return kernels.delta_net_chunk(*inputs, *self._empty(mixed), num_valid, packed)[0]
        if one_token:
            return kernels.delta_net_step_(*inputs, state.recurrent_state, state.conv_state, rows)
        return kernels.delta_net_chunk_(*inputs, state.recurrent_state, state.conv_state, rows, num_valid)

    def _conv_weight(self) -> Tensor:
        """All three convolutions are one over their concatenated channels: [C', W]."""
        fast = self._fast()
        if fast is not None:
            return fast["conv"]
        return torch.cat([self.q_conv1d(), self.k_conv1d(), self.v_conv1d()])[:, 0]

    def _output(self, out: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        fast = self._fast()
        if fast is None:
            normed = self.o_norm(out, gate.unflatten(-1, (-1, self.value_width)))
            return x + self.o_proj(normed.flatten(2))
        norm = self.o_norm
        return fast.kernels.gated_norm_linear_add(out, gate, norm.weight, norm.eps, fast["out"], x)

    def _empty(self, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """Both states at the start of a sequence: zeros, the recurrent state in float32 (or wider)."""
        batch, heads, wide = len(mixed), self.A_log.shape[0], torch.promote_types(mixed.dtype, torch.float32)
        recurrent_state = mixed.new_zeros(batch, heads, self.key_width, self.value_width, dtype=wide)
        return recurrent_state, mixed.new_zeros(batch, self.conv_size - 1, self.channels)

    def _lay_out(self) -> dict[str, Any]:
        projections = (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.a_proj, self.b_proj)
        convolutions = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        return {
            "in": stack_([proj.weight for proj in projections]),
            "conv": stack_([conv.weight for conv in convolutions])[:, 0],
            "out": self.o_proj.weight.data,
        }
