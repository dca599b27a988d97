"""Gated DeltaNet: linear attention whose memory is a matrix that is decayed, corrected and read.

Each token writes beta (v - what the memory already says about k) under its key and reads with its query.
There is no position encoding: order enters through the decay and a short causal convolution.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinitevl.config import InfiniteVLTextConfig
from infinitevl.model.layers import GatedRMSNorm
from infinitevl.ops.causal_conv import causal_conv_chunk, causal_conv_step
from infinitevl.ops.delta_rule import delta_rule_chunk, delta_rule_step
from infinitevl.ops.norm import l2_norm
from infinitevl.state import DeltaState


class CausalConv1d(nn.Module):
    """The taps [C, 1, W] of one depth-wise convolution; the layer runs all three as one."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, width))

    def forward(self) -> Tensor:
        """The taps; asked for by a call so that weights kept elsewhere arrive in time."""
        return self.weight


class GatedDeltaNet(nn.Module):
    """One Gated DeltaNet layer of the decoder (spec: "Gated DeltaNet layer"; paper, section 3)."""

    def __init__(self, config: InfiniteVLTextConfig):
        super().__init__()
        # How many tokens at once are read; a trainer may put kernels with the same signatures here.
        self.causal_conv, self.delta_rule = causal_conv_chunk, delta_rule_chunk
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

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        state: DeltaState | None = None,
        length: Tensor | None = None,
        num_valid: Tensor | None = None,
        one_token: bool = False,
    ) -> Tensor:
        """`step` or `chunk`; every mixer is called alike, and this one needs no angles and no length."""
        if one_token:
            assert state is not None, "one token at a time needs a state"
            return self.step(x, state)
        return self.chunk(x, state, num_valid)

    def chunk(self, x: Tensor, state: DeltaState | None, num_valid: Tensor | None) -> Tensor:
        """Many tokens [B, T, C] -> [B, T, C]; the state, if any, takes them in.

        Args:
            num_valid: int64 [B], how many of each row's first tokens count; None for all. The others neither
                decay the memory nor write to it.
        """
        mixed = self._project(x)
        start = self._empty_state(x) if state is None else state
        qkv, tail = self.causal_conv(mixed, self._taps(), start.tail, num_valid)
        log_decay, beta = self._gates(x)
        if num_valid is not None:
            counts = (torch.arange(x.shape[1], device=x.device) < num_valid[:, None])[..., None]
            log_decay, beta = log_decay * counts, beta * counts
        out, memory = self.delta_rule(*self._heads(qkv), log_decay, beta, start.memory)
        if state is not None:
            state.memory.copy_(memory)
            state.tail.copy_(tail)
        return self._output(out, x)

    def step(self, x: Tensor, state: DeltaState) -> Tensor:
        """One token [B, 1, C] -> [B, 1, C]."""
        qkv, tail = causal_conv_step(self._project(x), self._taps(), state.tail)
        log_decay, beta = self._gates(x)
        out, memory = delta_rule_step(*self._heads(qkv), log_decay, beta, state.memory)
        state.memory.copy_(memory)
        state.tail.copy_(tail)
        return self._output(out, x)

    def _project(self, x: Tensor) -> Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)

    def _taps(self) -> Tensor:
        """All three convolutions are one over their concatenated channels: [C, W]."""
        return torch.cat([self.q_conv1d(), self.k_conv1d(), self.v_conv1d()])[:, 0]

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the decay and writing strength, [B, T, H] in float32 or x's dtype if wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(self.a_proj(x).to(wide) + self.dt_bias.to(wide))
        return -self.A_log.to(wide).exp() * dt, self.b_proj(x).to(wide).sigmoid()

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, C] -> normalised queries and keys [B, T, H, K] and values [B, T, H, V]."""
        key_dim = self.q_proj.out_features
        q, k, v = qkv.split([key_dim, key_dim, self.v_proj.out_features], dim=-1)
        q, k = (x.unflatten(-1, (-1, self.key_width)) for x in (q, k))
        return l2_norm(q) * self.key_width**-0.5, l2_norm(k), v.unflatten(-1, (-1, self.value_width))

    def _output(self, out: Tensor, x: Tensor) -> Tensor:
        gate = self.g_proj(x).unflatten(-1, (-1, self.value_width))
        return self.o_proj(self.o_norm(out, gate).flatten(2))

    def _empty_state(self, x: Tensor) -> DeltaState:
        """A state of zeros, float32 memory (or x's dtype if wider)."""
        channels = 2 * self.q_proj.out_features + self.v_proj.out_features
        heads, wide = self.A_log.shape[0], torch.promote_types(x.dtype, torch.float32)
        memory = x.new_zeros(x.shape[0], heads, self.key_width, self.value_width, dtype=wide)
        return DeltaState(memory, x.new_zeros(x.shape[0], self.conv_size - 1, channels))
