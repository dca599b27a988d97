"""Grouped-query attention over the last `window` tokens and the sinks, or over all tokens."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from infinitevl.config import InfiniteVLTextConfig
from infinitevl.model.context import ForwardContext
from infinitevl.model.fused import Fusable, stack_
from infinitevl.model.layers import RMSNorm
from infinitevl.ops.table import Kernels
from infinitevl.state import WindowState


class WindowAttention(Fusable):
    """One attention layer of the decoder (bias on q, k and v, none on the output).

    Args:
        config: the decoder's sizes, its window and its sinks among them.
        is_full: every query sees all keys before it, without a window.
    """

    quantizable = ("in", "out")

    def __init__(self, config: InfiniteVLTextConfig, is_full: bool):
        super().__init__()
        self.head_dim = config.head_dim
        self.window = None if is_full else config.sliding_window
        self.num_sinks = 0 if is_full else config.num_sink_tokens
        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=True)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, context: ForwardContext, state: WindowState | None = None, *, norm: RMSNorm
    ) -> Tensor:
        """Attend from norm(x) and add x: [B, T, C].

        Args:
            state: takes the tokens in, in place; None reads a sequence from its start.
        """
        layout, projections = self._fast(), (self.q_proj, self.k_proj, self.v_proj)
        if layout is None:
            normed = norm(x)
            parts = [proj(normed) for proj in projections]
            return x + self.o_proj(self._attend(self.kernels, parts, context, state))
        together = layout.kernels.norm_linear(x, norm.weight, norm.eps, layout["in"], layout["in_bias"])
        parts = together.split([proj.out_features for proj in projections], dim=-1)
        return layout.kernels.linear_add(
            self._attend(layout.kernels, parts, context, state), layout["out"], x
        )

    def _attend(
        self,
        kernels: Kernels,
        parts: Sequence[Tensor],
        context: ForwardContext,
        state: WindowState | None,
    ) -> Tensor:
        """Queries, keys and values, each [B, T, H D] -> [B, T, H D]."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)  # [B, T, H, D]
        inputs = q, k, v, context.cos, context.sin
        if state is None:
            out = kernels.window_chunk(*inputs, self.window, context.packed, self.num_sinks)
            return out.flatten(2)
        ring = state.keys, state.values, context.length
        if context.one_token:
            return kernels.window_step_(*inputs, *ring, context.rows, self.num_sinks).flatten(2)
        selected = self.window, context.rows, context.num_valid, self.num_sinks
        return kernels.window_chunk_(*inputs, *ring, *selected).flatten(2)

    def _lay_out(self) -> dict[str, Any]:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        return {
            "in": stack_([proj.weight for proj in projections]),
            "in_bias": stack_([proj.bias for proj in projections]),
            "out": self.o_proj.weight.data,
        }
