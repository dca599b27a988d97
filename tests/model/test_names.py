"""What `load` says of names and folders that hold no model of ours, and how it reads those of Qwen2.5-VL."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from infinitevl import ChatSession, CheckpointError, load
from tests.support import tiny_model, tiny_processor
from tests.training.teachers import write_qwen


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("flat", [False, True])
def test_a_folder_of_qwen_runs_as_it_is(tmp_path, flat):
    qwen = write_qwen(tmp_path, flat=flat)
    model, processor = load(tmp_path, device="cpu")
    ids = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, qwen(input_ids=ids).logits, atol=1e-4)
    assert isinstance(ChatSession(model, processor, max_length=200).say("Hello", max_new_tokens=2), str)


def test_a_folder_of_another_model_is_told_by_its_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(CheckpointError, match="is a 'llama'"):
        load(folder)


@pytest.mark.parametrize(
    "name", [123, "", b"builtin", 1.5, ["builtin"], "x" * 5000, "a\0b", "a/" * 3000, "."]
)
def test_what_is_no_name_is_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        load(name)


def test_a_folder_that_may_not_be_read_is_told(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.is_file", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        load(folder)


def broken(weights):
    return {"header": b"\xff" * 8 + b"{}", "empty": b"", "text": b"no weights", "half": weights[:-50]}


@pytest.mark.parametrize("how", broken(b""))
def test_broken_weights_are_told(folder, how):
    path = folder / "model.safetensors"
    path.write_bytes(broken(path.read_bytes())[how])
    with pytest.raises(CheckpointError):
        load(folder)


def test_missing_weights_and_weights_of_numbers_without_a_point_are_told(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(
        {name: weight.to(torch.int64) for name, weight in weights.items()}, path, metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="I64"):
        load(folder)
    os.remove(path)
    with pytest.raises(CheckpointError):
        load(folder)


def test_weights_that_are_no_numbers_are_told_by_name(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "model.language_model.norm.weight"
    weights[name][3] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        load(folder, device="cpu")
