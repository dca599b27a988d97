"""The decoder: layers of three kinds in any order, and one way through them whoever holds the state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from infinitevl.config import FULL, LINEAR, InfiniteVLTextConfig
from infinitevl.model.context import ForwardContext
from infinitevl.model.delta_net import GatedDeltaNet
from infinitevl.model.fused import Fusable
from infinitevl.model.layers import GatedMLP, RMSNorm
from infinitevl.model.window_attention import WindowAttention
from infinitevl.ops.attention.rotary import phase_steps, section_axes
from infinitevl.ops.linear.quantized import KINDS
from infinitevl.ops.rows import Packed, pack, read_rows
from infinitevl.state import LayerState, StreamState


class RotaryEmbedding(Fusable):
    """Angles of the three position axes for every attention layer."""

    steps: Tensor
    axes: Tensor

    def __init__(self, config: InfiniteVLTextConfig):
        super().__init__()
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        self.sections = list(config.mrope_section)
        self.register_buffer("steps", torch.empty(self.head_dim // 2, dtype=torch.int64), persistent=False)
        self.register_buffer("axes", torch.empty(self.head_dim // 2, dtype=torch.int64), persistent=False)
        self.reset_buffers_()

    def reset_buffers_(self) -> None:
        """Fill the tables; loading a checkpoint leaves buffers that are not part of it empty."""
        self.steps.copy_(phase_steps(self.head_dim, self.theta))
        self.axes.copy_(section_axes(self.sections))

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [3, B, T] -> cos, sin: float32 [B, T, D]."""
        fast = self._fast()
        kernels = self.kernels if fast is None else fast.kernels
        return kernels.rotary_angles(position_ids, self.steps, self.axes)

    def _lay_out(self) -> dict[str, Any]:
        return {}


class DecoderLayer(GradientCheckpointingLayer):
    """Mixer and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: InfiniteVLTextConfig, kind: str):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn: GatedDeltaNet | WindowAttention = (
            GatedDeltaNet(config) if kind == LINEAR else WindowAttention(config, is_full=kind == FULL)
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=False, quantizations=KINDS)

    def forward(self, x: Tensor, context: ForwardContext, state: LayerState | None = None) -> Tensor:
        """[B, T, C] -> [B, T, C]; the state takes the tokens in."""
        x = self.self_attn(x, context, state, norm=self.input_layernorm)
        return self.mlp(x, norm=self.post_attention_layernorm)


class Decoder(nn.Module):
    """Embedding table, layers and final norm."""

    def __init__(self, config: InfiniteVLTextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config, kind) for kind in config.layer_types])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)

    def pack(self, lengths: Sequence[int]) -> Packed:
        """Sequences of these lengths, which share one row and know nothing of each other."""
        return pack(lengths, self.config.conv_size - 1, self.embed_tokens.weight.device)

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        state: StreamState | None = None,
        num_valid: Tensor | None = None,
        one_token: bool = False,
        hidden_states: list[Tensor] | None = None,
        rows: Tensor | None = None,
        packed: Packed | None = None,
    ) -> Tensor:
        """Read tokens after all that the state holds, and take them into it.

        Args:
            inputs_embeds: [B, T, C].
            position_ids: int64 [3, B, T], absolute.
            state: changed in place; None reads a sequence from its start and remembers nothing.
            num_valid: int64 [B], how many of each row's first tokens count; None for all.
            one_token: T is 1 and every row counts: the fast way for decoding.
            hidden_states: a list that receives the stream before each layer and after the norm.
            rows: int64 [B], the rows of a larger state that read; None for all. Distinct, and room in
                full-attention layers is the caller's to check.
            packed: without a state, the sequences that share the one row (`pack`); None for one a row.

        Returns:
            [B, T, C] after the final norm; rows beyond num_valid hold nothing of use.

        Raises:
            StateError: a full-attention layer has no room left.
        """
        # Without gradients a layer may put its result where its input was; the caller's stays as it is.
        kept = (lambda tensor: tensor) if torch.is_grad_enabled() else torch.clone
        x, length = kept(inputs_embeds), None
        if state is not None:
            if rows is None:
                state.check_room(x.shape[1] if num_valid is None else num_valid)
            length = read_rows(state.length, rows)
        cos, sin = self.rotary(position_ids)
        context = ForwardContext(cos, sin, length, num_valid, one_token, rows, packed)
        for index, layer in enumerate(self.layers):
            if hidden_states is not None:
                hidden_states.append(kept(x))
            x = layer(x, context, None if state is None else state.layers[index])
        if state is not None:
            _advance(state, x.shape[1], num_valid, position_ids, rows)
        x = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(x)
        return x


def _advance(
    state: StreamState,
    num_tokens: int,
    num_valid: Tensor | None,
    position_ids: Tensor,
    rows: Tensor | None,
) -> None:
    if num_valid is None:
        state.advance_(num_tokens, position_ids, rows)
        return
    counts = torch.arange(num_tokens, device=num_valid.device) < num_valid[:, None]
    state.advance_(num_valid, position_ids.masked_fill(~counts, -1), rows)
