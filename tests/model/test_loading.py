"""Loading by name, and what is said when it cannot be."""

import json

import pytest
import torch

from infinitevl.engine.loading import load
from infinitevl.errors import CheckpointError
from infinitevl.model import infinitevl as model_file
from infinitevl.model.weights import loading_errors
from tests.support import tiny_model, tiny_processor


def test_a_config_and_weights_in_memory_are_loaded_without_a_folder():
    model = tiny_model()
    again = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    part = {name: weight for name, weight in model.state_dict().items() if "norm" not in name}
    with pytest.raises(CheckpointError, match="state_dict"):
        type(model).from_pretrained(None, config=model.config, state_dict=part)


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_too_little_memory_is_not_told_as_damaged_files(error):
    with pytest.raises(type(error), match="allocate"), loading_errors("folder"):
        raise error


def test_a_broken_file_is_told_as_one():
    with pytest.raises(CheckpointError, match="whole"), loading_errors("folder"):
        raise RuntimeError("PytorchStreamReader failed reading zip archive")


def test_a_folder_loads_in_the_dtype_that_was_asked_for(folder):
    model, processor = load(folder, dtype=torch.bfloat16, device="cpu")
    assert model.dtype == torch.bfloat16 and not model.training
    assert processor.frame_size == 56


def test_a_folder_without_a_configuration_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr(model_file.InfiniteVLForConditionalGeneration, "from_pretrained", never)
    for name in (tmp_path, str(tmp_path)):
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            load(name)


def test_a_path_that_leads_nowhere_is_told_as_a_path(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        load(tmp_path / "nowhere")


def test_a_name_that_is_nearly_known_is_answered_with_the_known_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="Did you mean 'hustvl/InfiniteVL-LongSFT'") as error:
        load("hustvl/InfiniteVL-LongSFTT")
    assert str(error.value).count("Did you mean") == 1
    with pytest.raises(CheckpointError, match="Did you mean 'builtin'"):
        load("bultin")


def test_a_name_without_an_owner_is_refused_before_anybody_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_file.InfiniteVLForConditionalGeneration, "from_pretrained", None)
    with pytest.raises(CheckpointError, match=r"there is no model 'nope'.*one of builtin"):
        load("nope")


def test_a_known_name_without_a_network_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="network"):
        load("hustvl/InfiniteVL")


def test_a_folder_whose_configuration_makes_no_model_says_why(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 0}))
    with pytest.raises(CheckpointError, match="sliding_window"):
        load(folder)
