"""What `generate` of transformers needs to be told about a model whose past is a state."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import InputError
from infinitevl.model.hf_cache import StateCache, as_state_cache

_IMAGES = ("pixel_values", "image_grid_thw")
_VIDEOS = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


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
            model_kwargs["past_key_values"] = past

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The prompt with everything that belongs to it, then one token at a time."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[misc, arg-type]
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            for name in (*_IMAGES, *_VIDEOS):
                inputs.pop(name, None)
        return inputs

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
            visual = self._expand_visual(visual, input_ids, expand_size)
        expanded_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size,
            is_encoder_decoder,
            input_ids,  # type: ignore[arg-type]
            **model_kwargs,
        )
        return expanded_ids, {**model_kwargs, **visual}

    def _expand_visual(self, visual: dict[str, Any], input_ids: Tensor, times: int) -> dict[str, Any]:
        config = self.config
        for names, token in ((_IMAGES, config.image_token_id), (_VIDEOS, config.video_token_id)):
            grids = visual[names[1]]
            if grids is None:
                continue
            tokens = grids.prod(1) // config.vision_config.spatial_merge_size**2
            rows = _items_by_row(tokens.tolist(), (input_ids == token).sum(1).tolist())
            items = [item for row in rows for _ in range(times) for item in row]
            if visual[names[0]] is not None:
                pixels = visual[names[0]].split(grids.prod(1).tolist())
                visual[names[0]] = torch.cat([pixels[item] for item in items])
            for name in names[1:]:
                if visual[name] is not None:
                    visual[name] = torch.as_tensor(visual[name])[items]
        return visual


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
