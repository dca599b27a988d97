"""Gated DeltaNet: linear attention whose recurrent state is a matrix that is decayed, corrected and read.

Each token writes beta (v - what the state already says about k) under its key and reads with its query. There
is no position encoding: order enters through the decay and a short causal convolution.
"""

from typing import Any

import torch
from torch import Tensor, nn

from infinitevl.config import InfiniteVLTextConfig
from infinitevl.model.context import ForwardContext
from infinitevl.model.fused import Fusable, stack_
from infinitevl.model.layers import GatedRMSNorm, RMSNorm
from infinitevl.ops.table import Kernels
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
    """One Gated DeltaNet layer of the decoder (arXiv 2512.08829, section 3)."""

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
        self.widths = [self.channels, config.value_dim, heads, heads]  # of q, k, v; the gate; a; b

    def forward(
        self, x: Tensor, context: ForwardContext, state: DeltaState | None = None, *, norm: RMSNorm
    ) -> Tensor:
        """Mix norm(x) along the sequence and add x: [B, T, C].

        Args:
            state: takes the tokens in, in place; None reads a sequence from its start.
        """
        layout = self._fast()
        if layout is None:
            return self._by_projection(x, context, state, norm)
        together = layout.kernels.norm_linear(x, norm.weight, norm.eps, layout["in"])
        mixed, gate, a, b = together.split(self.widths, dim=-1)
        out = self._recur(layout.kernels, (mixed, a, b, layout["conv"]), context, state)
        own = self.o_norm
        return layout.kernels.gated_norm_linear_add(out, gate, own.weight, own.eps, layout["out"], x)

    def _by_projection(
        self, x: Tensor, context: ForwardContext, state: DeltaState | None, norm: RMSNorm
    ) -> Tensor:
        """The same with the single projections, which can receive gradients."""
        normed = norm(x)
        mixed = torch.cat([self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)], dim=-1)
        gate, a, b = self.g_proj(normed), self.a_proj(normed), self.b_proj(normed)
        conv_weight = torch.cat([self.q_conv1d(), self.k_conv1d(), self.v_conv1d()])[:, 0]
        out = self._recur(self.kernels, (mixed, a, b, conv_weight), context, state)
        out = self.o_norm(out, gate.unflatten(-1, (-1, self.value_width)))
        return x + self.o_proj(out.flatten(2))

    def _recur(
        self,
        kernels: Kernels,
        inputs: tuple[Tensor, ...],
        context: ForwardContext,
        state: DeltaState | None,
    ) -> Tensor:
        """Convolve, update the state and read from it: [B, T, H, V].

        Args:
            inputs: queries, keys and values side by side [B, T, C'], a and b [B, T, H], and the weight of
                their convolution [C', W].
        """
        inputs = (*inputs, self.A_log, self.dt_bias)
        if state is None:
            empty = self._empty(inputs[0])
            return kernels.delta_net_chunk(*inputs, *empty, context.num_valid, context.packed)[0]
        states = state.recurrent_state, state.conv_state
        if context.one_token:
            return kernels.delta_net_step_(*inputs, *states, context.rows)
        return kernels.delta_net_chunk_(*inputs, *states, context.rows, context.num_valid)

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
