"""Folders of every published form load as they are; damaged ones say what is wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from infinitevl.config import FULL, InfiniteVLConfig
from infinitevl.errors import CheckpointError, InputError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from tests.support import DATA, small_model, tiny_config, tiny_model

PUBLISHED = DATA / "published_4b"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(DATA / "small", tmp_path / "small", ignore=shutil.ignore_patterns("vectors*"))
    return tmp_path / "small"


def same_weights(a, b):
    other = b.state_dict()
    return all(torch.equal(weight, other[name]) for name, weight in a.state_dict().items())


def older_names(weights):
    return {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): weight
        for name, weight in weights.items()
    }


def test_the_older_prefix_loads_the_same_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(older_names(weights), folder / "model.safetensors", metadata={"format": "pt"})
    assert same_weights(InfiniteVLForConditionalGeneration.from_pretrained(folder), small_model())


def split_in_shards(folder):
    weights = load_file(folder / "model.safetensors")
    index = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        part = dict(list(weights.items())[number - 1 :: 2])
        save_file(part, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors").unlink()
    listing = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listing))


def test_several_shards_load_the_same_weights(folder):
    split_in_shards(folder)
    assert same_weights(InfiniteVLForConditionalGeneration.from_pretrained(folder), small_model())


def test_a_missing_shard_is_an_error_that_names_it(folder):
    split_in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        InfiniteVLForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_missing_unexpected_and_misshapen_weights_are_named(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["extra"] = weights.pop("model.language_model.norm.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        InfiniteVLForConditionalGeneration.from_pretrained(folder)
    assert "model.language_model.norm.weight" in str(error.value) and "extra" in str(error.value)
    model = InfiniteVLForConditionalGeneration.from_pretrained(folder, strict=False)
    assert (model.model.language_model.norm.weight == 1).all()


def test_weights_of_another_shape_and_truncated_files_are_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.language_model.norm.weight"] = torch.ones(7)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"language_model\.norm\.weight"):
        InfiniteVLForConditionalGeneration.from_pretrained(folder)
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        InfiniteVLForConditionalGeneration.from_pretrained(folder)


def test_a_lenient_load_starts_new_mixers_as_the_paper_does(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = {name: weight for name, weight in weights.items() if ".layers.1.self_attn." not in name}
    save_file(kept, path, metadata={"format": "pt"})
    model = InfiniteVLForConditionalGeneration.from_pretrained(folder, strict=False, dtype=torch.float32)
    mixer = model.model.language_model.layers[1].self_attn
    assert (mixer.a_proj.weight == 0).all() and (mixer.b_proj.weight == 0).all()
    assert (mixer.A_log == 0).all()
    assert torch.allclose(torch.nn.functional.softplus(mixer.dt_bias), torch.tensor(0.001), rtol=1e-4)
    assert (mixer.q_conv1d.weight[..., -1] == 1).all() and (mixer.v_conv1d.weight[..., :-1] == 0).all()
    assert mixer.q_proj.weight.std() > 0


def test_every_auto_class_gives_our_model_and_runs_no_code_of_the_folder(folder):
    """The folder's auto_map points at code that would be noticed."""
    for name in ("configuration_infinitevl", "modeling_infinitevl"):
        (folder / f"{name}.py").write_text("raise SystemExit('code of the folder ran')")
    for trust in (True, False):
        assert isinstance(AutoConfig.from_pretrained(folder, trust_remote_code=trust), InfiniteVLConfig)
        for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
            model = auto.from_pretrained(folder, trust_remote_code=trust, device_map="auto")
            assert type(model) is InfiniteVLForConditionalGeneration
    assert type(AutoModelForCausalLM.from_config(InfiniteVLConfig.from_pretrained(folder))) is type(model)


def test_torch_dtype_and_dtype_choose_the_dtype(folder):
    for keyword in ("torch_dtype", "dtype"):
        model = AutoModelForCausalLM.from_pretrained(folder, **{keyword: torch.bfloat16})
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    state = model.allocate_state()
    assert {layer.recurrent_state.dtype for layer in state.layers if hasattr(layer, "recurrent_state")} == {
        torch.float32
    }


def test_settings_of_the_published_code_take_no_effect():
    config = InfiniteVLConfig.from_pretrained(PUBLISHED)
    assert config.use_cache is True
    assert config._attn_implementation is None
    assert config.vision_config.model_type == "infinite_vl_vision"
    assert config.text_config.layer_types[:5] == ["sliding_attention"] + ["linear_attention"] * 3 + [
        "sliding_attention"
    ]
    text = config.text_config
    assert (text.head_dim, text.num_linear_heads, text.linear_head_dim, text.conv_size) == (128, 16, 128, 4)
    assert (text.linear_value_dim, text.norm_eps, config.pad_token_id) == (256, 1e-5, 151643)


def test_the_configuration_is_written_flat_and_comes_back_the_same(tmp_path):
    config = InfiniteVLConfig.from_pretrained(PUBLISHED)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    published = json.loads((PUBLISHED / "config.json").read_text())
    ignored = {"attn_implementation", "auto_map", "use_cache", "max_window_layers", "torch_dtype"}
    for key in set(published) - ignored - {"vision_config", "transformers_version"}:
        assert written[key] == published[key], key
    for key in set(published["vision_config"]) - {"model_type", "torch_dtype"}:
        assert written["vision_config"][key] == published["vision_config"][key], key
    assert not set(written) & {"text_config", "attn_implementation", "auto_map", "use_cache"}
    assert InfiniteVLConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_saved_model_has_the_newer_prefix_a_card_and_comes_back_exactly(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    save_file(older_names(weights), folder / "model.safetensors", metadata={"format": "pt"})
    model = InfiniteVLForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(weights)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and "pipeline_tag: image-text-to-text" in card
    assert same_weights(AutoModelForImageTextToText.from_pretrained(tmp_path / "out"), model)


def test_keywords_are_named_as_transformers_names_them(folder, tmp_path):
    model = InfiniteVLForConditionalGeneration.from_pretrained(pretrained_model_name_or_path=folder)
    model.save_pretrained(save_directory=tmp_path / "main")
    assert (tmp_path / "main" / "README.md").exists()
    model.save_pretrained(save_directory=tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / "README.md").exists()


def test_an_attention_that_a_caller_asks_of_an_auto_class_is_not_dropped(folder):
    with pytest.raises(InputError, match="flash_attention_2"):
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="flash_attention_2")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "attn_implementation": "flash_attention_2"}))
    assert AutoModelForCausalLM.from_pretrained(folder).config._attn_implementation == "sdpa"


def test_an_untied_head_is_kept(tmp_path):
    model = tiny_model(tie_word_embeddings=False)
    assert model.lm_head.weight is not model.model.language_model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert same_weights(InfiniteVLForConditionalGeneration.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layer_types": ["sliding"] * 4}, "unknown layer_types"),
        ({"layer_types": [FULL] * 3}, "names 3 layers"),
        ({"mrope_section": [1, 1, 1]}, "mrope_section"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_linear_key_value_heads": 1}, "num_linear_key_value_heads"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"use_sliding_window": False}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"vision_config": {"out_hidden_size": 64}}, "out_hidden_size"),
        ({"vision_config": {"hidden_act": "gelu"}}, "vision hidden_act"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "'linear'"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(CheckpointError, match=message):
        tiny_config(**overrides)


def test_the_model_of_the_published_shape_is_tied_and_has_4_41_billion_weights():
    config = InfiniteVLConfig.from_pretrained(PUBLISHED)
    with torch.device("meta"):
        model = InfiniteVLForConditionalGeneration(config)
    assert round(model.num_parameters() / 1e9, 2) == 4.41


def test_a_model_spread_by_accelerate_keeps_each_layers_state_where_it_computes(folder, tmp_path):
    """Half of the layers on disk: their weights visit, their state stays."""
    places = {"model.visual": "cpu", "model.language_model.embed_tokens": "cpu", "lm_head": "cpu"}
    places |= {f"model.language_model.layers.{i}": "cpu" if i < 4 else "disk" for i in range(8)}
    places |= {f"model.language_model.{name}": "cpu" for name in ("norm", "rotary")}
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path / "o")
    ids = torch.randint(0, 400, (1, 30))
    with torch.no_grad():
        wanted = small_model()(input_ids=ids).logits
        parts, cache = [], None
        for token in ids.split(10, dim=1):
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
            parts, cache = [*parts, out.logits], out.past_key_values
    assert {tensor.device.type for tensor in cache.state.tensors().values()} == {"cpu"}
    assert torch.allclose(torch.cat(parts, 1), wanted, atol=1e-3)
