"""Opens the model that a stage starts from, by name: built-in, a folder, or a name on the hub."""

import os
from pathlib import Path

import torch

from infinitevl.errors import CheckpointError
from infinitevl.model import adapters, opening
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.opening import open_model
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.training.checkpoint import CHECKPOINT
from infinitevl.training.parts import STAGES

MODEL, ADAPTER = "model", adapters.FOLDER  # in the folder of a run
_EARLIER = "an earlier stage writes it: run"


def open_start(name: str, attention: str | None = None) -> InfiniteVLForConditionalGeneration:
    """Loads a model by a name that `infinitevl.load` takes, onto the CPU; `attention` as there.

    Weights are in the folder's number format; those of the built-in model in float32, so that its adapter is
    added exactly.

    Raises:
        CheckpointError: nothing usable under that name; says what to do.
    """
    find_start(name)
    return open_model(name, torch.float32 if opening.is_builtin(name) else "auto", attention)


def open_processor(name: opening.Name) -> InfiniteVLProcessor:
    """Loads the processor of a model, by a name that `find_start` resolves."""
    return InfiniteVLProcessor.from_pretrained(find_start(name))


def find_start(name: opening.Name) -> str:
    """Resolves a name as `opening.place_of` does; the error says which stage writes a missing folder."""
    path = Path(name)
    if not opening.is_builtin(name):
        if not os.path.exists(path) and (advice := _how_to_get(path)):
            raise CheckpointError(f"there is no folder {name}; {advice}")
        if not os.path.isfile(path / "config.json") and os.path.isdir(path / MODEL):
            raise CheckpointError(
                f"{name} has no config.json; the finished model of that run is {path / MODEL}."
            )
    return opening.place_of(name)


def _how_to_get(path: Path) -> str | None:
    """Says which command writes a missing folder, if its name shows that."""
    run, stage = path.parent, path.parent.name.replace("_", "-")
    if path.name == MODEL and (run / CHECKPOINT).exists():
        return (
            f"the run in {run} is not finished: continue it (--resume), or make a model of it "
            "(`infinitevl train export`)."
        )
    if path.name == MODEL and stage in STAGES:
        return f"{_EARLIER} `infinitevl train {stage}` with a recipe that has `out: {run}` first."
    if path.name == "student":
        return f"{_EARLIER} `infinitevl train init --teacher TEACHER --out {path}` first."
    return None
