"""How many streams fit, from the config alone."""

import types

import pytest
import torch

from infinitevl.cli.doctor import inspect_machine
from infinitevl.cli.sizes import state_bytes, weight_bytes
from infinitevl.config import InfiniteVLConfig
from infinitevl.engine.loading import load

GIGABYTE = 10**9


def rooms(monkeypatch, available, model=None):
    """Findings about streams on a machine with so many free bytes, by name."""
    memory = types.SimpleNamespace(available=available, total=available)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    return {found.name: found for found in inspect_machine(model, "cpu", "auto")}


def test_streams_fit_into_what_the_weights_leave(monkeypatch):
    config = InfiniteVLConfig()
    size, weights = state_bytes(config.text_config, torch.bfloat16), weight_bytes(config, torch.bfloat16)
    assert 132e6 < size < 135e6 and 8.8e9 < weights < 8.9e9
    found = rooms(monkeypatch, weights + 7 * size)["streams of published 4B"]
    assert found.ok and found.value == "7 fit on cpu"
    assert "8.8 GB for the weights" in found.note


def test_weights_that_leave_no_room_are_told(monkeypatch):
    found = rooms(monkeypatch, 6 * GIGABYTE)
    assert found["streams of published 4B"].ok is False
    assert found["streams of published 4B"].value.startswith("0 fit")
    assert found["streams of this model"].ok


def test_a_model_is_sized_as_it_would_be_loaded(monkeypatch, tiny_folder):
    found = rooms(monkeypatch, GIGABYTE, tiny_folder)
    assert "float32" in found["this model"].value
    model, _ = load(tiny_folder, device="cpu")
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert weight_bytes(model.config, torch.float32) == held
    assert state_bytes(model.config.text_config, torch.float32) == model.allocate_state().num_bytes


@pytest.mark.parametrize("place", ["absent", "hustvl/Absent"])
def test_an_unknown_model_leaves_the_published_one(monkeypatch, place):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = rooms(monkeypatch, 99 * GIGABYTE, place)
    assert found["this model"].ok is False and found["streams of published 4B"].ok
