"""Each part contributes: without it the logits change, so that an equality over them proves something."""

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from infinitevl.model.delta_net import GatedDeltaNet
from infinitevl.model.window_attention import WindowAttention
from tests.support import (
    TINY_IDS,
    TINY_TEXT,
    TINY_VISION,
    prompt_inputs,
    relative_error,
    small_model,
    tiny_model,
)


@pytest.mark.parametrize("make", [small_model, tiny_model])
@pytest.mark.parametrize("kind", [GatedDeltaNet, WindowAttention])
def test_zeroing_one_kind_of_layer_changes_the_logits(make, kind):
    model, ids = make(), torch.randint(0, 400, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(input_ids=ids, use_cache=False).logits
        for module in model.modules():
            if isinstance(module, kind):
                module.o_proj.weight.zero_()
        assert relative_error(model(input_ids=ids, use_cache=False).logits, wanted) > 0.1


@pytest.mark.parametrize("layer", range(4))
def test_zeroing_any_single_mixer_changes_the_logits(layer):
    model, ids = tiny_model(), torch.randint(0, 400, (1, 60))
    with torch.no_grad():
        wanted = model(input_ids=ids, use_cache=False).logits
        model.model.language_model.layers[layer].self_attn.o_proj.weight.zero_()
        assert relative_error(model(input_ids=ids, use_cache=False).logits, wanted) > 0.02


def qwen_twin(model):
    """transformers' own Qwen2.5-VL with the same weights."""
    text = {key: value for key, value in TINY_TEXT.items() if "linear" not in key and key != "mrope_section"}
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
        },
        vision_config={**TINY_VISION, "tokens_per_second": 2},
        tie_word_embeddings=True,
        **TINY_IDS,
    )
    twin = Qwen2_5_VLForConditionalGeneration(config).eval()
    problems = twin.load_state_dict(model.state_dict(), strict=False)
    assert not problems.missing_keys and not problems.unexpected_keys
    return twin


def test_a_full_attention_model_equals_transformers_qwen2_5_vl_in_text_and_pictures():
    model = tiny_model(layer_types=["full_attention"] * 4)
    twin = qwen_twin(model)
    inputs = prompt_inputs(model.config)
    del inputs["pixel_values_videos"], inputs["video_grid_thw"], inputs["second_per_grid_ts"]
    inputs["input_ids"][0, 20:28] = 7
    kinds = (inputs["input_ids"] == model.config.image_token_id).long()
    with torch.no_grad():
        wanted = twin(**inputs, mm_token_type_ids=kinds).logits
        assert relative_error(model(**inputs, use_cache=False).logits, wanted) < 1e-5
        text = torch.randint(0, 400, (2, 50))
        wanted = twin(input_ids=text).logits
        assert relative_error(model(input_ids=text, use_cache=False).logits, wanted) < 1e-5
