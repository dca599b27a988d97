"""Runs that end badly: the last checkpoint is whole, and going on is as if nothing had happened."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infinitevl import files
from infinitevl.errors import InfiniteVLError
from infinitevl.training import stage
from infinitevl.training.checkpoint import CHECKPOINT, read_checkpoint
from infinitevl.training.recipes import read_recipe
from infinitevl.training.stage import MODEL, teach
from infinitevl.training.stages.sft import sft
from infinitevl.training.training_log import LOG, TrainingLog, losses
from tests.training.stages import write_recipe, write_world
from tests.training.test_two_processes import weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world):
    return teach(read_recipe(write_recipe(world, "sft", world / "whole"))).parent


def start(recipe, *words, **environment):
    program = [sys.executable, "-m", "tests.training.killed", str(recipe), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen(program, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "number", "kept"), [("step", 4, 2), ("save", 4, 2)])
def test_a_killed_run_goes_on_bit_for_bit(world, whole, where, number, kept):
    folder = world / f"killed-{where}"
    recipe = write_recipe(world, "sft", folder)
    process = start(recipe, where, number)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert read_checkpoint(folder)["step"] == kept
    teach(read_recipe(recipe), resume=True)
    found, wanted = weights(folder / MODEL), weights(whole / MODEL)
    assert all(torch.equal(weight, wanted[name]) for name, weight in found.items())
    assert not list(folder.glob(".*"))  # what was half written is gone too
    assert losses(folder / LOG) == losses(whole / LOG)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_lost_process_stops_the_other_with_a_message(world, whole, sharding):
    folder = world / f"lost-{sharding}"
    data = {"sources": [{"path": str(world / "data.jsonl")}], "row_tokens": 256, "rows_per_step": 4}
    recipe = write_recipe(world, "sft", folder, data=data, sharding=sharding)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [start(recipe, "step", 4, 1, RANK=str(n), LOCAL_RANK=str(n), **group) for n in range(2)]
    (_, told), _ = (process.communicate(timeout=200) for process in ranks)
    assert ranks[1].returncode == -signal.SIGKILL
    assert ranks[0].returncode == 1
    assert "another process of this run does not answer any more" in told and "--resume" in told
    assert read_checkpoint(folder)["step"] == 2


@pytest.mark.parametrize("place", ["while it is written", "when it is flushed"])
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(world, monkeypatch, place):
    folder = world / place.replace(" ", "-")
    recipe = read_recipe(write_recipe(world, "sft", folder))
    teach(recipe, stop_after=2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((torch, "save") if place.startswith("while") else (files, "_sync")), full)
    with pytest.raises(InfiniteVLError, match=r"No space left.*free some space"):
        teach(recipe, resume=True)
    monkeypatch.undo()
    assert read_checkpoint(folder)["step"] == 2
    assert sorted(path.name for path in folder.iterdir()) == [CHECKPOINT, LOG]


def test_a_loss_that_is_no_number_stops_a_stage_before_its_weights_move(world, monkeypatch):
    folder = world / "nan"
    recipe = read_recipe(write_recipe(world, "sft", folder))
    teach(recipe, stop_after=2)
    monkeypatch.setattr(stage, "sft", lambda student, batch: sft(student, batch) * float("nan"))
    with pytest.raises(InfiniteVLError, match=r"step 3: the loss is nan.*last good step"):
        teach(recipe, resume=True)
    assert read_checkpoint(folder)["step"] == 2


def test_a_second_run_in_the_same_folder_is_refused(world, monkeypatch):
    recipe = read_recipe(write_recipe(world, "sft", world / "twice"))
    teach(recipe, stop_after=2)
    told = []

    def with_another(student, batch):
        if not told:
            told.append("")
            with pytest.raises(InfiniteVLError, match="another run is at work") as refused:
                teach(recipe, resume=True)
            told[0] = str(refused.value)
        return sft(student, batch)

    monkeypatch.setattr(stage, "sft", with_another)
    teach(recipe, resume=True, stop_after=1)
    assert told[0] and read_checkpoint(world / "twice")["step"] == 3
    monkeypatch.undo()
    teach(recipe, resume=True)


def test_a_damaged_checkpoint_is_refused_whatever_is_wrong_with_it(world):
    folder = world / "damaged"
    recipe = read_recipe(write_recipe(world, "sft", folder))
    teach(recipe, stop_after=2)
    path = folder / CHECKPOINT
    whole, state = path.read_bytes(), torch.load(path)
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 4]) + whole[middle + 4 :]
    for damaged in (b"", b"text", whole[:middle], flipped):
        path.write_bytes(damaged)
        with pytest.raises(InfiniteVLError, match="is damaged"):
            teach(recipe, resume=True)
    for other in (
        [1],
        {},
        *({key: state[key] for key in state if key != name} for name in state if name != "total_tokens"),
    ):
        torch.save(other, path)
        with pytest.raises(InfiniteVLError, match="no checkpoint of a run"):
            read_checkpoint(folder)


def test_lines_of_a_log_that_are_none_are_left_out(tmp_path):
    path = tmp_path / LOG
    whole = b'{"step": 1, "loss": 2.0}\n'
    path.write_bytes(whole + b'\xff\x00}\n[1]}\n{"a": 1}\n{"step": "x", "loss": 1}\n{"step": 2, "lo')
    assert losses(path) == [(1, 2.0)]
    TrainingLog(path).start(5, 10)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300, "a\0b"])
def test_a_place_where_no_folder_can_be_is_told(world, name):
    (world / "file").write_text("")
    recipe = read_recipe(write_recipe(world, "sft", world / "run"))
    with pytest.raises(InfiniteVLError, match="Give another `out`"):
        teach(recipe.model_copy(update={"out": str(world / name)}))
