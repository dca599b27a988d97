"""What a stage starts from, by name: the built-in model, a folder, or a name of the hub."""

import os
from pathlib import Path
from typing import Any

import torch

from infinitevl.errors import CheckpointError
from infinitevl.model import adapters
from infinitevl.model.builtin import BUILTIN_STAGE_2, builtin_folder, is_builtin
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.processor import InfiniteVLProcessor
from infinitevl.training.parts import STAGES
from infinitevl.training.run import CHECKPOINT

MODEL, ADAPTER = "model", adapters.FOLDER  # in the folder of a run
_EARLIER = "; an earlier stage writes it: run"


def open_start(name: str) -> InfiniteVLForConditionalGeneration:
    """The model of a name that `infinitevl.load` knows, on the CPU; an adapter beside its weights is merged.

    Weights are in the folder's number format; those of the built-in model in float32, so that its adapter is
    added exactly.

    Raises:
        CheckpointError: nothing usable under that name; says what to do.
    """
    dtype: Any = torch.float32 if is_builtin(name) else "auto"
    folder = place_of(name)
    model = InfiniteVLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    if name != BUILTIN_STAGE_2 and (Path(folder) / ADAPTER).is_dir():
        adapters.merge_(model, Path(folder) / ADAPTER)
    return model


def open_processor(name: str | os.PathLike[str]) -> InfiniteVLProcessor:
    """The processor of a name that `place_of` knows."""
    return InfiniteVLProcessor.from_pretrained(place_of(name))


def place_of(name: str | os.PathLike[str]) -> str:
    """What `from_pretrained` takes for a name: the folder of the built-in model, or the name as it is.

    Raises:
        CheckpointError: a path of a folder that is not there, or that holds no model; no hub is asked for it.
    """
    if is_builtin(name):
        return str(builtin_folder())
    path = Path(name)
    if not path.exists() and _is_path(name):
        raise CheckpointError(f"there is no folder {name}{_how_to_get(path)}")
    if path.is_dir() and not (path / "config.json").is_file():
        there = f"; the finished model of that run is {path / MODEL}" if (path / MODEL).is_dir() else ""
        raise CheckpointError(
            f"{name} has no config.json{there}. Give a folder with config.json and weights, or a name."
        )
    return str(name)


def _is_path(name: str | os.PathLike[str]) -> bool:
    """Whether no hub can know it: names of the hub have one slash at most, and no dot in front."""
    text = os.fspath(name)
    return text.startswith((".", "~")) or Path(text).is_absolute() or text.count("/") > 1


def _how_to_get(path: Path) -> str:
    """Who writes a folder that is not there, as far as the names of the pipeline say it."""
    run, stage = path.parent, path.parent.name.replace("_", "-")
    if path.name == MODEL and (run / CHECKPOINT).exists():
        return (
            f"; the run in {run} is not finished: go on with it (--resume), or make a model of it "
            "(`infinitevl train export`)."
        )
    if path.name == MODEL and stage in STAGES:
        return f"{_EARLIER} `infinitevl train {stage}` with a recipe that has `out: {run}` first."
    if path.name == "student":
        return f"{_EARLIER} `infinitevl train init --teacher TEACHER --out {path}` first."
    return ". Give a folder with config.json and weights, or a name of `infinitevl models`."
