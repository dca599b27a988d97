"""The fingerprint tells models apart by what their answers depend on, and by nothing else."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from infinitevl.errors import CheckpointError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.weights import fingerprint, sample_indices
from tests.support import tiny_config, tiny_model


def mark_of(model):
    return fingerprint(model, model.config)


@pytest.mark.parametrize("size", [1, 2, 1024, 1025, 151936 * 2048, 11008 * 2048, 5120 * 5120])
def test_samples_reach_from_the_first_value_to_the_last_and_not_beyond(size):
    index = sample_indices(size)
    assert (int(index[0]), int(index[-1])) == (0, size - 1)
    assert len(index.unique()) == len(index) == min(size, 1024)


@pytest.mark.parametrize(
    "other",
    [
        {"sliding_window": 13},
        {"num_sink_tokens": 1},
        {"rope_theta": 1e5},
        {"norm_eps": 1e-6},
        {"mrope_section": [2, 1, 1]},
        {"layer_types": ["full_attention", "linear_attention", "linear_attention", "linear_attention"]},
    ],
)
def test_the_same_weights_under_other_sizes_are_another_model(other):
    model = tiny_model()
    assert fingerprint(model, tiny_config(**other)) != mark_of(model)


def test_settings_that_change_no_number_change_no_fingerprint():
    model = tiny_model()
    wanted = mark_of(model)
    model.config.output_hidden_states = True
    model.config.return_dict = False
    model.config.text_config.max_position_embeddings = 7
    model.config.text_config.expand_v = 2.0
    assert mark_of(model) == wanted


def test_a_model_kept_on_disk_has_the_fingerprint_of_one_in_memory(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "m")
    layers = {f"model.language_model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
    places = {"model.visual": "disk", "model.language_model.embed_tokens": "cpu", "lm_head": "cpu"}
    places |= layers | {"model.language_model.norm": "cpu", "model.language_model.rotary": "cpu"}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", device_map=places, offload_folder=tmp_path / "o"
    )
    assert mark_of(spread) == mark_of(model)


def test_a_model_without_values_has_no_fingerprint():
    with torch.device("meta"):
        model = InfiniteVLForConditionalGeneration(tiny_config())
    with pytest.raises(CheckpointError, match="meta device"):
        mark_of(model)
