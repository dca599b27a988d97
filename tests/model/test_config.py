"""Fields of the right kind, and keywords that take effect or are refused by name."""

import json

import pytest
import torch
from transformers import AutoConfig

from infinitevl import InfiniteVLConfig, load
from infinitevl.config import InfiniteVLTextConfig, InfiniteVLVisionConfig
from infinitevl.errors import CheckpointError, InputError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from tests.support import tiny_config, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


@pytest.mark.parametrize("cls", [InfiniteVLConfig, AutoConfig])
def test_keywords_of_the_decoder_take_effect(saved, cls):
    config = cls.from_pretrained(saved, sliding_window=20, rope_theta=7.0, mrope_section=[2, 1, 1])
    text = config.text_config
    assert (text.sliding_window, text.rope_theta, text.mrope_section) == (20, 7.0, [2, 1, 1])
    assert text.hidden_size == 32
    assert cls.from_pretrained(saved, text_config={"sliding_window": 21}).text_config.sliding_window == 21
    assert cls.from_pretrained(saved, image_token_id=7).image_token_id == 7


def test_keywords_of_a_model_reach_its_configuration(saved):
    model = InfiniteVLForConditionalGeneration.from_pretrained(saved, sliding_window=20)
    assert model.allocate_state().layers[0].keys.shape[2] == 20


def test_keywords_that_are_no_fields_are_refused_by_name(saved):
    with pytest.raises(InputError, match="sliding_windw"):
        InfiniteVLConfig.from_pretrained(saved, sliding_windw=20)
    _, unused = InfiniteVLConfig.from_pretrained(saved, sliding_windw=20, return_unused_kwargs=True)
    assert unused == {"sliding_windw": 20}
    with pytest.raises(CheckpointError, match="sliding_window is -1"):
        InfiniteVLConfig.from_pretrained(saved, sliding_window=-1)


def test_a_part_is_read_from_the_whole_model_s_folder(saved):
    assert InfiniteVLTextConfig.from_pretrained(saved).to_dict() == tiny_config().text_config.to_dict()
    assert InfiniteVLTextConfig.from_pretrained(saved, sliding_window=20).sliding_window == 20
    assert InfiniteVLVisionConfig.from_pretrained(saved).hidden_size == 32


@pytest.mark.parametrize(
    "wanted", [{"text_config": "sdpa"}, {"text_config": "sdpa", "vision_config": "eager"}, {"": "sdpa"}]
)
def test_attention_may_be_named_for_each_part(saved, wanted):
    model = InfiniteVLForConditionalGeneration.from_pretrained(saved, attn_implementation=wanted)
    model.set_attn_implementation(wanted)
    ids = torch.arange(9)[None]
    assert torch.equal(model(input_ids=ids).logits, tiny_model()(input_ids=ids).logits)


@pytest.mark.parametrize("wanted", [{"text_config": "flash_attention_2"}, {"txt": "sdpa"}, 3, ["sdpa"]])
def test_attention_that_is_not_there_is_refused_by_name(saved, wanted):
    with pytest.raises(InputError, match="attn_implementation"):
        InfiniteVLForConditionalGeneration.from_pretrained(saved, attn_implementation=wanted)


WRONG = {
    "sliding_window": [None, "12", 1.5, 0, [1], True],
    "num_attention_heads": [None, "4", 0],
    "num_key_value_heads": [None, 0],
    "layer_types": [[1, 2, 3, 4], "full_attention"],
    "rope_scaling": ["x", {"mrope_section": ["a"]}, {"mrope_section": [1, 2]}],
    "rope_theta": ["x", None, 0, float("inf")],
    "rms_norm_eps": ["x", None],
    "expand_v": ["x", None, 0],
    "conv_size": [None, "4", 0],
    "vocab_size": ["x", -1],
    "image_token_id": ["x", None, -1],
    "eos_token_id": ["x", ["y"]],
    "dtype": ["x", 3, "int8"],
    "tie_word_embeddings": ["x", 1],
    "quantization_config": [3, []],
    "vision_config": ["x", [1], {"depth": "a"}, {"num_heads": 0}, {"patch_size": 0}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_field_of_another_kind_is_told_by_name(folder, name, value):
    given = json.loads((folder / "config.json").read_text())
    changed = {**given[name], **value} if isinstance(value, dict) and name in given else value
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**given, name: changed}))
    with pytest.raises(CheckpointError) as caught:
        load(folder, device="cpu")
    inner = next(iter(value)) if isinstance(value, dict) else name
    assert inner in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{", "", "[" * 100_000, "\xff"])
def test_a_configuration_that_is_no_object_is_told(folder, text):
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(text, encoding="latin1")
    with pytest.raises(CheckpointError):
        load(folder, device="cpu")


def test_whole_numbers_of_another_json_writer_are_whole_numbers():
    config = tiny_config(sliding_window=12.0)
    assert type(config.text_config.sliding_window) is int
