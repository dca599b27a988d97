"""Grouped-query attention over the last `window` tokens, or over all of them."""

from typing import Any

from torch import Tensor, nn

from infinitevl.config import InfiniteVLTextConfig
from infinitevl.model.fused import Fusable, stack_
from infinitevl.model.layers import RMSNorm
from infinitevl.ops.packed import Packed
from infinitevl.state import WindowState


class WindowAttention(Fusable):
    """One attention layer of the decoder (bias on q, k and v, none on the output).

    Args:
        config: the decoder's sizes. window: keys that a query sees, its own among them; None for all.
    """

    quantizable = ("in", "out")

    def __init__(self, config: InfiniteVLTextConfig, window: int | None):
        super().__init__()
        self.head_dim = config.head_dim
        self.window = window
        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=True)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        state: WindowState | None = None,
        length: Tensor | None = None,
        num_valid: Tensor | None = None,
        one_token: bool = False,
        rows: Tensor | None = None,
        packed: Packed | None = None,
        *,
        norm: RMSNorm,
    ) -> Tensor:
        """x + attended norm(x), [B, T, C].

        Args:
            cos, sin: float32 [B, T, D]. state: takes the tokens in, in place; None keeps nothing.
            length: int64 [B], tokens in the state.
            num_valid: int64 [B], how many of each row's first tokens count; None for all.
            one_token: T is 1 and every row counts.
            rows: int64 [B], which rows of the state go on; None for all.
            packed: without a state, the sequences that share the one row; None for one a row.
        """
        fast = self._fast()
        kernels = self.kernels if fast is None else fast.kernels
        inputs = (*self._project(x, norm), cos, sin)
        if state is None:
            out = kernels.window_chunk(*inputs, self.window, packed)
        elif one_token:
            out = kernels.window_step_(*inputs, state.keys, state.values, length, rows)
        else:
            ring = (state.keys, state.values)
            out = kernels.window_chunk_(*inputs, *ring, length, self.window, rows, num_valid)
        if fast is None:
            return x + self.o_proj(out.flatten(2))
        return fast.kernels.linear_add(out.flatten(2), fast["out"], x)

    def _project(self, x: Tensor, norm: RMSNorm) -> list[Tensor]:
        """Queries, keys and values, [B, T, H, D]."""
        fast = self._fast()
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if fast is None:
            normed = norm(x)
            parts = [proj(normed) for proj in projections]
        else:
            together = fast.kernels.norm_linear(x, norm.weight, norm.eps, fast["in"], fast["in_bias"])
            parts = together.split([proj.out_features for proj in projections], dim=-1)
        return [part.unflatten(-1, (-1, self.head_dim)) for part in parts]

    def _lay_out(self) -> dict[str, Any]:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        return {
            "in": stack_([proj.weight for proj in projections]),
            "in_bias": stack_([proj.bias for proj in projections]),
            "out": self.o_proj.weight.data,
        }
