"""What a stage starts from, by name: the built-in model, a folder, or a name of the hub."""

from pathlib import Path

import torch

from infinitevl.errors import CheckpointError
from infinitevl.model import adapters, opening
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.opening import open_model
from infinitevl.processing.processor import InfiniteVLProcessor
from infinitevl.training.checkpoint import CHECKPOINT
from infinitevl.training.parts import STAGES

MODEL, ADAPTER = "model", adapters.FOLDER  # in the folder of a run
_EARLIER = "an earlier stage writes it: run"


def open_start(name: str) -> InfiniteVLForConditionalGeneration:
    """The model of a name, as `infinitevl.load` knows it, on the CPU.

    Weights are in the folder's number format; those of the built-in model in float32, so that its adapter is
    added exactly.

    Raises:
        CheckpointError: nothing usable under that name; says what to do.
    """
    place_of(name)
    return open_model(name, torch.float32 if opening.is_builtin(name) else "auto")


def open_processor(name: opening.Name) -> InfiniteVLProcessor:
    """The processor of a name that `place_of` knows."""
    return InfiniteVLProcessor.from_pretrained(place_of(name))


def place_of(name: opening.Name) -> str:
    """As `opening.place_of`; of a folder that the pipeline writes it says how to get it."""
    path = Path(name)
    if not opening.is_builtin(name):
        if not path.exists() and (advice := _how_to_get(path)):
            raise CheckpointError(f"there is no folder {name}; {advice}")
        if not (path / "config.json").is_file() and (path / MODEL).is_dir():
            raise CheckpointError(
                f"{name} has no config.json; the finished model of that run is {path / MODEL}."
            )
    return opening.place_of(name)


def _how_to_get(path: Path) -> str | None:
    """Who writes a folder that is not there, as far as the names of the pipeline say it."""
    run, stage = path.parent, path.parent.name.replace("_", "-")
    if path.name == MODEL and (run / CHECKPOINT).exists():
        return (
            f"the run in {run} is not finished: go on with it (--resume), or make a model of it "
            "(`infinitevl train export`)."
        )
    if path.name == MODEL and stage in STAGES:
        return f"{_EARLIER} `infinitevl train {stage}` with a recipe that has `out: {run}` first."
    if path.name == "student":
        return f"{_EARLIER} `infinitevl train init --teacher TEACHER --out {path}` first."
    return None
