"""Stages of the built-in model: a recipe of the package whose data is the small world.

The package's loop teaches them; what is drawn goes to it as an argument.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from builtin import pretrain
from builtin.feed.scenes import SceneFeed
from builtin.feed.settings import DrawSettings, SceneSettings, SmallData
from builtin.pretrain import Pretrain
from infinitevl.errors import InputError
from infinitevl.files import atomic_write
from infinitevl.training import preview
from infinitevl.training import stage as training_stage
from infinitevl.training.recipes import Recipe, explained, parse_recipe, read_yaml
from infinitevl.training.starts import open_processor
from infinitevl.training.trainer import processes


@dataclass(frozen=True)
class SmallStage:
    """A stage as the package knows it, without data, and what it draws of the small world."""

    recipe: Recipe | Pretrain
    data: SmallData

    def changed(self, **settings: Any) -> "SmallStage":
        """The same stage with other settings of its recipe."""
        return dataclasses.replace(self, recipe=self.recipe.model_copy(update=settings))


def read_stage(path: str | Path) -> SmallStage:
    """A stage from a YAML file whose `data` names the small world.

    Raises:
        InputError: no such file, no YAML, or settings that are unknown, missing or out of range, by name.
    """
    return parse_stage(read_yaml(path), str(path))


def parse_stage(found: dict[str, Any], where: str = "recipe") -> SmallStage:
    """The same from plain values."""
    if "data" not in found:
        raise InputError(f"{where}: missing setting 'data'")
    recipe = _parse_recipe({name: value for name, value in found.items() if name != "data"}, where)
    try:
        return SmallStage(recipe, SmallData.model_validate(found["data"]))
    except ValidationError as error:
        models = (SmallData, SceneSettings, DrawSettings)
        known = {name for model in models for name in model.model_fields}
        raise explained(error, f"{where}: data", known) from error


def _parse_recipe(found: dict[str, Any], where: str) -> Recipe | Pretrain:
    if found.get("stage") != "pretrain":
        return parse_recipe(found, where)
    try:
        return Pretrain.model_validate(found)
    except ValidationError as error:
        raise explained(error, where, Pretrain.model_fields) from error


def open_feed(stage: SmallStage) -> SceneFeed:
    """What the stage draws, for this process.

    Raises:
        InfiniteVLError: the student, whose vocabulary is used, or the pack of drawings is not there.
    """
    accelerator, recipe = processes(), stage.recipe
    return SceneFeed(
        stage.data.scenes,
        open_processor(recipe.student).tokenizer.backend_tokenizer,
        recipe.seed,
        recipe.num_steps,
        workers=stage.data.workers,
        device=accelerator.device,
        dtype=recipe.torch_dtype,
        rank=accelerator.process_index,
    )


def teach(
    stage: SmallStage, *, resume: bool = False, stop_after: int | None = None, seconds: float = math.inf
) -> Path | None:
    """As the package's `teach`, on the small world."""
    limits: dict[str, Any] = {"resume": resume, "stop_after": stop_after, "seconds": seconds}
    if isinstance(stage.recipe, Pretrain):
        return pretrain.teach(stage.recipe, open_feed(stage), **limits)
    return training_stage.teach(stage.recipe, feed=open_feed(stage), **limits)


def write_stage(stage: SmallStage, path: Path) -> None:
    """Write a stage as the YAML file that `read_stage` reads."""
    found = stage.recipe.model_dump(mode="json", exclude={"data"}, exclude_none=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(
            yaml.safe_dump({**found, "data": stage.data.model_dump(mode="json", exclude_none=True)})
        )


def show(stage: SmallStage, pictures: Path | None = None) -> str:
    """As the package's `preview`, on the small world; InputError for pretraining, which has none."""
    if isinstance(stage.recipe, Pretrain):
        raise InputError("pretraining has no dry run: it begins in seconds, and Ctrl-C ends it after a step.")
    return preview.preview(stage.recipe, pictures, open_feed(stage))
