"""Grouped-query attention over the last `window` tokens, or over all of them."""

from torch import Tensor, nn

from infinitevl.config import InfiniteVLTextConfig
from infinitevl.ops.attention import attend_chunk, attend_step, store_chunk_, store_step_
from infinitevl.ops.rotary import rotate
from infinitevl.state import WindowState


class WindowAttention(nn.Module):
    """One attention layer of the decoder (bias on q, k and v, none on the output).

    Args:
        config: the decoder's sizes. window: keys that a query sees, its own among them; None for all.
    """

    def __init__(self, config: InfiniteVLTextConfig, window: int | None):
        super().__init__()
        self.attend = attend_chunk  # a trainer may put a kernel with the same signature here
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
    ) -> Tensor:
        """`step` or `chunk`: the caller knows which it has."""
        if one_token:
            assert state is not None and length is not None, "one token at a time needs a state"
            return self.step(x, cos, sin, state, length)
        return self.chunk(x, cos, sin, state, length, num_valid)

    def chunk(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        state: WindowState | None,
        length: Tensor | None,
        num_valid: Tensor | None,
    ) -> Tensor:
        """Many tokens [B, T, C] -> [B, T, C]; the state, if any, takes them in.

        Args:
            cos, sin: float32 [B, T, D]. length: int64 [B], tokens in the state.
            num_valid: int64 [B], how many of each row's first tokens count; None for all.
        """
        q, k, v = self._project(x, cos, sin)
        ring = None if state is None else state.ring
        out = self.attend(q, k, v, ring, length, self.window)
        if ring is not None:
            assert length is not None
            store_chunk_(ring, k, v, length, num_valid)
        return self.o_proj(out.flatten(2))

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, state: WindowState, length: Tensor) -> Tensor:
        """One token [B, 1, C] -> [B, 1, C]."""
        q, k, v = self._project(x, cos, sin)
        store_step_(state.ring, k, v, length)
        return self.o_proj(attend_step(q, state.ring, length + 1).flatten(2))

    def _project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim))  # [B, T, H, D]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v
