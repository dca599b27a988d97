"""What `generate` of transformers needs to be told about a model whose past is a state."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
)

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import InputError
from infinitevl.model.hf_cache import StateCache, as_state_cache
from infinitevl.model.positions import IMAGE, VIDEO, token_kinds

_IMAGES = ("pixel_values", "image_grid_thw")
_VIDEOS = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
# What `generate` keeps beside the inputs for itself; where the cache stands is in the state.
_FOR_GENERATE = frozenset(inspect.signature(GenerationMixin.generate).parameters) | {
    "tokenizer",
    "assistant_tokenizer",
    "stop_strings",
    "cache_position",
}


class StateGeneration(GenerationMixin):
    """`generate` over a `StateCache`; positions and pictures belong to the prompt alone."""

    config: InfiniteVLConfig

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> None:
        """None: `forward` works positions out from the state, so that two conversations never meet."""
        return None

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        if generation_config.cache_implementation is not None:
            raise InputError(
                f"cache_implementation={generation_config.cache_implementation!r} is not used: the state has "
                "a constant size anyway. Leave it out."
            )
        past = as_state_cache(model_kwargs.get("past_key_values"))
        if past is None and generation_config.use_cache:
            past = StateCache(max_length=max_cache_length + 1)
        if past is not None:
            times = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            if times > 1 and past.state is not None and past.state.batch_size == batch_size:
                past.batch_repeat_interleave(times)  # each prompt is read for several answers
            model_kwargs["past_key_values"] = past

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """An answer never holds a picture's or video's place: there would be no picture to put there."""
        places = [self.config.image_token_id, self.config.video_token_id]
        processors = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]
        # First, so that what keeps the best tokens chooses among possible ones.
        processors.insert(0, SuppressTokensLogitsProcessor(places, device=kwargs.get("device") or "cpu"))
        return processors

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The prompt with everything that belongs to it, then one token at a time.

        What only `generate` knows (a tokenizer for stop_strings, an assistant) goes no further.
        """
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            for name in (*_IMAGES, *_VIDEOS):
                inputs.pop(name, None)
        kept = {name: value for name, value in inputs.items() if name not in _FOR_GENERATE}
        return _padded_left(kept)

    def _expand_inputs_for_generation(  # type: ignore[override]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Each row `expand_size` times, its pictures and videos with it."""
        visual = {name: model_kwargs.pop(name, None) for name in (*_IMAGES, *_VIDEOS)}
        if expand_size > 1 and input_ids is not None:
            kinds = model_kwargs.get("mm_token_type_ids")  # what embeddings stand for, which have no ids
            if input_ids.shape[1] or kinds is None:
                kinds = token_kinds(input_ids, self.config)
            visual = self._expand_visual(visual, kinds, expand_size)
        expanded_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size,
            is_encoder_decoder,
            input_ids,  # type: ignore[arg-type]
            **model_kwargs,
        )
        return expanded_ids, {**model_kwargs, **visual}

    def _expand_visual(self, visual: dict[str, Any], kinds: Tensor, times: int) -> dict[str, Any]:
        for names, kind in ((_IMAGES, IMAGE), (_VIDEOS, VIDEO)):
            grids = visual[names[1]]
            if grids is None:
                continue
            tokens = grids.prod(1) // self.config.vision_config.spatial_merge_size**2
            rows = _items_by_row(tokens.tolist(), (kinds == kind).sum(1).tolist())
            items = [item for row in rows for _ in range(times) for item in row]
            if visual[names[0]] is not None:
                pixels = visual[names[0]].split(grids.prod(1).tolist())
                visual[names[0]] = torch.cat([pixels[item] for item in items])
            for name in names[1:]:
                if visual[name] is not None:
                    visual[name] = torch.as_tensor(visual[name])[items]
        return visual


def _padded_left(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same prompts with their padding in front: the last column is the one that is answered.

    Raises:
        InputError: a row has padding alone after tokens that were read before (prefill in chunks).
    """
    mask = inputs.get("attention_mask")
    name = "inputs_embeds" if inputs.get("input_ids") is None else "input_ids"
    num_new = inputs[name].shape[1]
    if num_new < 2 or mask is None or mask.dim() != 2 or mask.shape[1] < num_new or bool(mask[:, -1].all()):
        return inputs
    new = mask[:, -num_new:].bool()
    if bool((mask.bool().any(1) & ~new.any(1)).any()):
        raise InputError(
            "a row of the last tokens is padding alone, so there is nothing to answer. Pad on the left "
            "(padding_side='left'), or leave out prefill_chunk_size."
        )
    order = torch.argsort(new.int(), dim=1, stable=True)
    moved = {"attention_mask": torch.cat([mask[:, :-num_new], mask[:, -num_new:].gather(1, order)], 1)}
    for key in (name, "mm_token_type_ids", "position_ids"):
        if inputs.get(key) is not None:
            moved[key] = _reordered(inputs[key], order)
    return {**inputs, **moved}


def _reordered(values: Tensor, order: Tensor) -> Tensor:
    """Columns of values [B, T], [B, T, C] or [axes, B, T] at order [B, T]."""
    index = order.to(values.device)
    if values.is_floating_point():
        return values.gather(1, index[..., None].expand_as(values))
    return values.gather(-1, index.expand_as(values))


def _items_by_row(tokens: list[int], row_tokens: list[int]) -> list[list[int]]:
    """Which pictures or videos stand in each row, by the tokens that they need."""
    rows, item = [], 0
    for left in row_tokens:
        row = []
        while left > 0 and item < len(tokens):
            row.append(item)
            left -= tokens[item]
            item += 1
        rows.append(row)
    return rows
