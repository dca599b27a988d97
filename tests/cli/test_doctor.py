"""How many streams fit, from the config alone, and how many keep up, by measuring."""

import types

import pytest
import torch

from infinitevl.cli.doctor import inspect_machine
from infinitevl.cli.pace import frames_per_second
from infinitevl.cli.sizes import state_bytes, weight_bytes
from infinitevl.config import InfiniteVLConfig
from infinitevl.engine.loading import load

GIGABYTE = 10**9


@pytest.fixture(autouse=True)
def one_step(monkeypatch):
    """A measurement takes one step."""
    monkeypatch.setattr("infinitevl.cli.pace.SECONDS", 0.0)


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


def test_what_keeps_up_is_measured_and_is_no_more_than_fits(monkeypatch, tiny_folder):
    paces = []

    def measure(*given):
        paces.append(frames_per_second(*given))
        return paces[-1]

    monkeypatch.setattr("infinitevl.cli.doctor.frames_per_second", measure)
    found = rooms(monkeypatch, GIGABYTE, tiny_folder)["streams in time"]
    assert paces[0] > 0 and f"{paces[0]:,.1f} frames a second" in found.note and "measured here" in found.note
    assert found.value == f"{int(paces[0]):,} keep up at one frame a second"
    config = InfiniteVLConfig.from_pretrained(tiny_folder)
    two = weight_bytes(config, torch.float32) + 2 * state_bytes(config.text_config, torch.float32)
    monkeypatch.setattr("infinitevl.cli.doctor.frames_per_second", lambda *_: 1000.0)
    assert rooms(monkeypatch, two, tiny_folder)["streams in time"].value.startswith("2 keep up")


def test_a_large_model_is_not_loaded_to_be_measured(monkeypatch, tiny_folder):
    monkeypatch.setattr("infinitevl.cli.pace._LARGEST", 1000)
    assert "streams in time" not in rooms(monkeypatch, GIGABYTE, tiny_folder)


@pytest.mark.parametrize("place", ["absent", "hustvl/Absent"])
def test_an_unknown_model_leaves_the_published_one(monkeypatch, place):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = rooms(monkeypatch, 99 * GIGABYTE, place)
    assert found["this model"].ok is False and found["streams of published 4B"].ok
