"""Boards beside the log."""

import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from infinitevl.errors import InputError
from infinitevl.training.training_log import TrainingLog

pytestmark = pytest.mark.usefixtures("accelerator")
FACTS = {"loss": 2.0, "gradient_norm": 1.0}


@pytest.fixture
def accelerator():
    """A run's process, which accelerate's trackers ask for."""
    return Accelerator(cpu=True)


def test_tensorboard_gets_every_line(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    log = TrainingLog(tmp_path / "log.jsonl", log_to=["tensorboard"])
    log.start(0, 3)
    for step in (1, 2):
        log.add(10, 0.0)
        log.write(step, {**FACTS, "loss": 3.0 - step})
    log.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    assert "tokens_per_second" in found.Tags()["scalars"]


def test_a_run_of_wandb_goes_on_under_its_id(tmp_path, monkeypatch):
    begun, points = [], []

    def init(**given):
        begun.append(given)
        return SimpleNamespace(log=lambda numbers, step: points.append((step, numbers["loss"])), finish=list)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for first in (0, 1):
        log = TrainingLog(tmp_path / "log.jsonl", log_to=["wandb"])
        log.start(first, 3)
        log.add(10, 0.0)
        log.write(first + 1, FACTS)
        log.close()
    assert begun[0]["id"] == begun[1]["id"] and begun[0]["resume"] == "allow"
    assert points == [(1, 2.0), (2, 2.0)]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_board_that_is_not_installed_is_told_by_name(tmp_path, monkeypatch, name):
    for module in (name, "tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    with pytest.raises(InputError, match=f"pip install {name}"):
        TrainingLog(tmp_path / "log.jsonl", log_to=[name]).start(0, 3)


def test_other_processes_open_no_board(tmp_path):
    log = TrainingLog(tmp_path / "log.jsonl", writes=False, log_to=["tensorboard"])
    log.start(0, 3)
    assert log.boards == []
