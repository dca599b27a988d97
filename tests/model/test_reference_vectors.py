"""What the published implementation computes, to 2e-5 in float32."""

import json

import pytest
import torch
from safetensors.torch import load_file

from infinitevl.config import InfiniteVLConfig
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import prompt_positions, token_kinds
from tests.support import DATA, relative_error, small_model

TOLERANCE = 2e-5
PROMPT = (
    "input_ids",
    "pixel_values",
    "pixel_values_videos",
    "image_grid_thw",
    "video_grid_thw",
    "second_per_grid_ts",
)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def vectors():
    return load_file(DATA / "small" / "vectors.safetensors")


@pytest.fixture(scope="module")
def out(model, vectors):
    with torch.no_grad():
        return model(**{name: vectors[name] for name in PROMPT}, output_hidden_states=True, use_cache=False)


def test_positions_and_deltas_are_those_of_the_rule(model, vectors):
    positions, deltas = prompt_positions(
        token_kinds(vectors["input_ids"], model.config),
        torch.zeros(1, dtype=torch.int64),
        model.config,
        vectors["image_grid_thw"],
        vectors["video_grid_thw"],
        vectors["second_per_grid_ts"],
    )
    assert torch.equal(positions, vectors["position_ids"])
    assert torch.equal(deltas, vectors["rope_deltas"])


def test_picture_features_equal_the_published_ones(model, vectors):
    with torch.no_grad():
        features = model.model.visual(vectors["pixel_values"], vectors["image_grid_thw"])
    assert relative_error(features, vectors["image_features"]) < TOLERANCE


@pytest.mark.parametrize("layer", [0, 1, 2, 5])
def test_the_stream_before_a_layer_equals_the_published_one(out, vectors, layer):
    assert relative_error(out.hidden_states[layer], vectors[f"hidden_{layer}"]) < TOLERANCE


def test_logits_of_text_pictures_and_video_equal_the_published_ones(out, vectors):
    assert relative_error(out.logits, vectors["logits"]) < TOLERANCE


def test_logits_of_long_text_equal_the_published_ones(model, vectors):
    with torch.no_grad():
        logits = model(input_ids=vectors["text_input_ids"], use_cache=False).logits
    assert relative_error(logits, vectors["text_logits"]) < TOLERANCE


def test_logits_token_by_token_equal_the_published_cached_ones(model, vectors):
    ids = vectors["text_input_ids"]
    with torch.no_grad():
        out = model(input_ids=ids[:, :200])
        parts, cache = [out.logits], out.past_key_values
        for t in range(200, ids.shape[1]):
            parts.append(model(input_ids=ids[:, t : t + 1], past_key_values=cache).logits)
    assert relative_error(torch.cat(parts, dim=1), vectors["text_cached_logits"]) < TOLERANCE


@pytest.mark.parametrize("sinks", [{}, {"num_sink_tokens": 256, "sliding_window": 2048}])
def test_the_published_4b_has_exactly_these_weights(sinks):
    config = InfiniteVLConfig.from_pretrained(DATA / "published_4b", **sinks)
    with torch.device("meta"):
        model = InfiniteVLForConditionalGeneration(config)
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    assert shapes == json.loads((DATA / "published_4b" / "state_dict_shapes.json").read_text())
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
