"""The model as transformers knows it: forward, generate, from_pretrained.

This is the one place that reads and names what transformers passes, and where the number of tokens chooses
the way through the decoder. Engines and trainers use its parts: `visual`, `language_model`, `lm_head`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import InputError
from infinitevl.model.decoder import Decoder
from infinitevl.model.generation import StateGeneration
from infinitevl.model.hf_cache import StateCache, as_state_cache
from infinitevl.model.inputs import (
    axis_positions,
    check_attentions,
    check_batch,
    check_labels,
    check_no_gradients,
    check_tokens,
    kept_positions,
    new_columns,
    new_kinds,
    packed_lengths,
    taken_alone,
    without_starts,
)
from infinitevl.model.positions import IMAGE, TEXT, VIDEO, prompt_positions
from infinitevl.model.pretrained import InfiniteVLPreTrainedModel
from infinitevl.model.vision import VisionEncoder
from infinitevl.model.weights import check_values
from infinitevl.ops.rows import Packed
from infinitevl.state import StreamState


class InfiniteVLModel(InfiniteVLPreTrainedModel):
    """Vision encoder and decoder, without the LM head."""

    def __init__(self, config: InfiniteVLConfig):
        super().__init__(config)
        self.visual = VisionEncoder(config.vision_config)
        self.language_model = Decoder(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding table."""
        assert isinstance(value, nn.Embedding)
        self.language_model.embed_tokens = value

    @property
    def layer_devices(self) -> list[torch.device]:
        """Where each decoder layer computes, also one whose weights accelerate keeps elsewhere."""
        return [_computing_device(layer) for layer in self.language_model.layers]

    def allocate_state(
        self, batch_size: int = 1, *, max_length: int | None = None, frame_size: tuple[int, int] = (0, 0)
    ) -> StreamState:
        """An empty state in this model's dtype, each layer's part on that layer's device."""
        return StreamState.allocate(
            self.config.text_config,
            batch_size,
            dtype=self.dtype,
            device=self.layer_devices,
            max_length=max_length,
            frame_size=frame_size,
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids [B, T] -> [B, T, C]."""
        return self.language_model.embed_tokens(input_ids)

    def place_features(self, embeds: Tensor, kinds: Tensor, kind: int, pixels: Tensor, grids: Any) -> Tensor:
        """Put the features of pictures (or videos) where `kinds` [B, T] says.

        Raises:
            InputError: there are more or fewer places than features, or patches do not fit their grids.
        """
        name = "image" if kind == IMAGE else "video"
        if grids is None:
            raise InputError(
                f"pixels were given without {name}_grid_thw. Pass all that the processor returned."
            )
        features = self.visual(pixels.to(embeds.device), grids).to(embeds)
        places = kinds == kind
        if int(places.sum()) != features.shape[0]:
            raise InputError(
                f"the prompt has {int(places.sum())} {name} tokens, the {name}s given need "
                f"{features.shape[0]}. Make text and pixels with one processor call; after a cached prefix "
                "pass only the new ones."
            )
        return embeds.masked_scatter(places[..., None].to(embeds.device), features)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StateCache | StreamState | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | Sequence[float] | None = None,
        mm_token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        sequence_lengths: Sequence[int] | Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """Read a batch of prompts, or continue one.

        Args:
            input_ids: int64 [B, T], or inputs_embeds [B, T, C].
            attention_mask: [B, tokens so far + T] (or [B, T]), 0 at padding on either side.
            position_ids: int64 [3, B, T] (time, height, width), [B, T], or transformers' [4, B, T]; worked
                out when left out.
            past_key_values: what an earlier call returned; its state is changed in place.
            use_cache: return a cache; by default only where no gradient is recorded.
            pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw, second_per_grid_ts,
                mm_token_type_ids: as the processor returns them, for the new tokens alone.
            output_hidden_states: return the stream before each layer and after the last norm.
            sequence_lengths: tokens of each sequence where several share the one row; none sees another.
                Needs position_ids, which start anew in each, and keeps no cache.

        Raises:
            InputError: the arguments do not fit each other.
            CheckpointError: the weights have no values (a model on the meta device).
            StateError: no room in a full-attention layer, or a cache of another batch size.
        """
        config = self.config
        check_attentions(config.output_attentions if output_attentions is None else output_attentions)
        embeds = self._embeds(input_ids, inputs_embeds)
        counts = new_columns(attention_mask, embeds)
        kinds = new_kinds(input_ids, mm_token_type_ids, embeds, counts, config)
        if pixel_values is not None:
            embeds = self.place_features(embeds, kinds, IMAGE, pixel_values, image_grid_thw)
        if pixel_values_videos is not None:
            embeds = self.place_features(embeds, kinds, VIDEO, pixel_values_videos, video_grid_thw)
        packed = None
        if sequence_lengths is not None:
            lengths = packed_lengths(sequence_lengths, embeds, position_ids, counts, past_key_values)
            packed, use_cache = self.language_model.pack(lengths), False
        cache = self._cache(past_key_values, use_cache, embeds)
        state = None if cache is None else cache.state
        if position_ids is None:
            start = kinds.new_zeros(len(kinds), dtype=torch.int64) if state is None else state.next_position
            if state is not None and embeds.shape[1] == 1 and pixel_values is pixel_values_videos is None:
                kinds = kinds.clamp(max=TEXT)  # a generated token is text, whatever its id
            position_ids, _ = prompt_positions(
                kinds, start, config, image_grid_thw, video_grid_thw, second_per_grid_ts
            )
        position_ids = axis_positions(position_ids, embeds)
        wants_hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states: list[Tensor] | None = [] if wants_hidden else None
        decode = self._decode
        if state is not None and torch.compiler.is_compiling():
            # A compiler's graph cannot change views of one buffer that are of several dtypes.
            decode = torch.compiler.disable(decode)
        out = decode(embeds, position_ids, state, counts, hidden_states, packed)
        if cache is not None:
            cache.num_seen += embeds.shape[1]
        return BaseModelOutputWithPast(
            last_hidden_state=out,
            past_key_values=cache,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
        )

    def _embeds(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        text = self.config.text_config
        check_tokens(input_ids, inputs_embeds, text.vocab_size, text.hidden_size)
        embeds: Any = self.embed(input_ids) if inputs_embeds is None else inputs_embeds  # type: ignore[arg-type]
        given = embeds if input_ids is None else input_ids
        if "meta" in (embeds.device.type, given.device.type):
            check_values(self)
            raise InputError("the inputs are on the meta device, which holds no values. Give real tensors.")
        return embeds

    def _cache(self, past: object, use_cache: bool | None, embeds: Tensor) -> StateCache | None:
        cache = as_state_cache(past)
        wanted = use_cache if use_cache is not None else not torch.is_grad_enabled()
        if cache is None and not wanted:
            return None
        check_no_gradients(itertools.chain([embeds], self.parameters()))
        cache = StateCache() if cache is None else cache
        if cache.state is None:
            cache.state = self.allocate_state(embeds.shape[0], max_length=cache.room_for(embeds.shape[1]))
        check_batch(cache.state, embeds)
        return cache

    def _decode(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        state: StreamState | None,
        counts: Tensor | None,
        hidden_states: list[Tensor] | None,
        packed: Packed | None,
    ) -> Tensor:
        """Padding moves to the end of each row, where a causal model cannot see it, and back afterwards."""
        if counts is None:
            one_token = state is not None and embeds.shape[1] == 1
            given = (state, None, one_token, hidden_states, None, packed)
            return self.language_model(embeds, position_ids, *given)
        order = torch.argsort(~counts, dim=1, stable=True)
        embeds = _take(embeds, order)
        position_ids = position_ids.gather(2, order.expand(3, -1, -1))
        out = self.language_model(embeds, position_ids, state, counts.sum(1), False, hidden_states)
        back = order.argsort(dim=1)
        if hidden_states is not None:
            hidden_states[:] = [_take(hidden, back) for hidden in hidden_states]
        return _take(out, back)


def _computing_device(layer: nn.Module) -> torch.device:
    device = next(layer.parameters()).device
    hook: Any = getattr(layer, "_hf_hook", None)  # accelerate's; absent where nothing was moved
    return torch.device(hook.execution_device) if device.type == "meta" and hook else device


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, T, C] at index [B, T], which may lie on another device of a model spread over several."""
    return x.gather(1, index.to(x.device)[..., None].expand(-1, -1, x.shape[-1]))


class InfiniteVLForConditionalGeneration(InfiniteVLPreTrainedModel, StateGeneration, GenerationMixin):
    """InfiniteVL with its LM head: chats through `generate`, and is what sessions and trainers use."""

    # The trainer of transformers asks this before it passes num_items_in_batch.
    accepts_loss_kwargs = True
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: InfiniteVLConfig):
        super().__init__(config)
        self.model = InfiniteVLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding table."""
        self.model.set_input_embeddings(value)

    def allocate_state(
        self, batch_size: int = 1, *, max_length: int | None = None, frame_size: tuple[int, int] = (0, 0)
    ) -> StreamState:
        """An empty state for this model (`StreamState.allocate`)."""
        return self.model.allocate_state(batch_size, max_length=max_length, frame_size=frame_size)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StateCache | StreamState | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | Sequence[float] | None = None,
        mm_token_type_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        sequence_lengths: Sequence[int] | Tensor | None = None,
        **by_trainer: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token; arguments as in `InfiniteVLModel.forward`.

        Args:
            labels: int64 [B, T], the tokens themselves, -100 where no loss is wanted.
            logits_to_keep: only the last so many positions (0: all), or the indices to keep.
            num_items_in_batch: divide the summed loss by this instead of by the number of labels.
            shift_labels: int64 [B, T], labels that already stand at the token before (context parallelism);
                they go before `labels`. Named here alone: the Trainer takes every label that it finds in the
                signature to be one that each evaluation has.

        Returns:
            logits [B, T, vocabulary], and the loss if labels were given.
        """
        shift_labels = taken_alone("shift_labels", by_trainer)
        out = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            pixel_values,
            pixel_values_videos,
            image_grid_thw,
            video_grid_thw,
            second_per_grid_ts,
            mm_token_type_ids,
            output_hidden_states,
            output_attentions,
            sequence_lengths,
            return_dict=True,
        )
        kept = kept_positions(logits_to_keep, out.last_hidden_state.shape[1])
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None or shift_labels is not None:
            targets: Any = labels if shift_labels is None else shift_labels
            check_labels(targets, logits)
            if sequence_lengths is not None and labels is not None:
                labels = without_starts(labels, sequence_lengths)
            loss = self.loss_function(
                logits,
                labels,
                vocab_size=logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels,
            )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )
