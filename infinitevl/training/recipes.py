"""Recipes: every setting of a stage, read from YAML; unknown ones are refused by name."""

import difflib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import (
    BaseModel,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from infinitevl.errors import InputError
from infinitevl.training.settings import Share, Strict, TrainerSettings


class SourceSettings(Strict):
    """One file of samples."""

    path: str = Field(min_length=1, description="A .jsonl or .json file, or a saved dataset.")
    form: Literal["messages", "sharegpt"] = Field("messages", description="How its rows are written.")
    weight: PositiveFloat | None = Field(
        None, description="Its part of an epoch beside the others' weights; its number of rows if none says."
    )


class DataSettings(Strict):
    """What a stage reads: `sources`, or a `mixture` of the `public` ones."""

    sources: list[SourceSettings] = Field([], description="Files that are mixed.")
    public: str | None = Field(
        None, description="A file that names public sources and mixtures, such as recipes/4b/data.yaml."
    )
    mixture: str | None = Field(None, description="Which mixture of that file.")
    samples_per_epoch: PositiveInt | None = Field(
        None, description="How many samples an epoch has; default: all rows once."
    )
    sample_tokens: PositiveInt | None = Field(
        None, description="Longest sample; longer ones are skipped and named. Default: row_tokens."
    )
    row_tokens: PositiveInt = Field(8192, description="Tokens of a packed row, which samples share.")
    rows_per_step: PositiveInt = Field(64, description="Packed rows of one step, over all processes.")
    min_pixels: PositiveInt | None = Field(None, description="Fewest pixels of a picture.")
    max_pixels: PositiveInt | None = Field(None, description="Most pixels of a picture.")
    fps: PositiveFloat | None = Field(None, description="Frames taken of a second of video.")
    max_frames: PositiveInt | None = Field(None, description="Most frames of a video.")
    max_frame_pixels: PositiveInt | None = Field(None, description="Most pixels of a frame of a video.")
    max_skipped: int = Field(100, ge=0, description="Bad samples after which the run stops.")
    workers: int = Field(0, ge=0, description="Processes that read ahead, at most.")

    @model_validator(mode="after")
    def _says_what_once(self) -> "DataSettings":
        given = [bool(self.sources), self.public is not None]
        if (self.public is None) != (self.mixture is None) or sum(given) != 1:
            raise ValueError("give one of sources, or public and mixture together")
        return self


class LoraSettings(Strict):
    """LoRA adapters of every projection of the decoder's layers."""

    rank: PositiveInt = Field(64, description="Inner width of an adapter.")
    alpha: PositiveInt = Field(128, description="Adapters count alpha / rank times.")
    dropout: Share = Field(0.0, description="Share of an adapter's inputs that are dropped.")


class StageRecipe(TrainerSettings):
    """What all stages share."""

    student: str = Field(min_length=1, description="Folder or name of the model to start from.")
    out: str = Field(min_length=1, description="Folder for the log, the checkpoint and the finished model.")
    data: DataSettings | None = Field(
        None, description="What is read. Every recipe file has it; None where a program gives the feed."
    )
    attention: Literal["streaming", "sliding", "full"] | None = Field(
        None,
        description="Keys that attention keeps: sinks and a window, a window alone, or all; default: as the "
        "start.",
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Of products; trained weights and their moments are float32 in any case."
    )
    gradient_checkpointing: bool = Field(
        True, description="Keep one activation a layer and compute the others again: less memory, slower."
    )
    checkpointed_layers: int | None = Field(
        None, ge=0, description="How many layers do so, the first ones; default: all of the decoder."
    )
    compile: bool = Field(
        False, description="Compile the decoder's layers: faster steps, after a minute or so at the start."
    )

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's own."""
        return getattr(torch, self.dtype)


class DistillLayers(StageRecipe):
    """Stage 1a: new mixers learn their layer's output from their teacher's."""

    stage: Literal["distill-layers"] = Field(description="Which stage this is.")
    teacher: str = Field(description="Folder or name of the teacher that the student was made of.")


class DistillLogits(StageRecipe):
    """Stage 1b: new mixers learn the teacher's next tokens."""

    stage: Literal["distill-logits"] = Field(description="Which stage this is.")
    teacher: str = Field(description="Folder or name of the teacher that the student was made of.")
    temperature: PositiveFloat = Field(2.0, description="At which distributions are compared.")
    all_tokens: bool = Field(
        False, description="Learn from every token, as the published run did, not from answers alone."
    )


class Sft(StageRecipe):
    """Stage 2: mixers, attention and feed-forward learn answers."""

    stage: Literal["sft"] = Field(description="Which stage this is.")
    trains: Literal["mixers-and-feed-forward", "mixers"] = Field(
        "mixers-and-feed-forward",
        description="Which weights of all layers: Gated DeltaNet and attention, with or without feed-forward "
        "and norms.",
    )


class LongSft(StageRecipe):
    """Stage 3: adapters learn answers over long sequences."""

    stage: Literal["long-sft"] = Field(description="Which stage this is.")
    lora: LoraSettings = Field(LoraSettings.model_validate({}), description="The adapters.")


Recipe = DistillLayers | DistillLogits | Sft | LongSft
_ANY: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="stage")])
# Settings that may change when a run resumes: paths, how often files are written, how it computes.
_FREE = {"out", "save_every", "log_every", "log_to"}
_FREE |= {"dtype", "gradient_checkpointing", "checkpointed_layers", "compile", "sharding"}


_LARGEST = 1_000_000  # bytes of a recipe


class _Loader(yaml.SafeLoader):
    """Refuses a setting that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping, whose names may stand in it once."""
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe from a YAML file; paths in it are relative to the working directory.

    Raises:
        InputError: no such file, no YAML, or settings that are unknown, missing or out of range, by name.
    """
    recipe = parse_recipe(read_yaml(path), str(path))
    if recipe.data is None:
        raise InputError(f"{path}: missing setting 'data'")
    return recipe


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads the plain values of a YAML file; InputError if there is no such file, or none in it."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            text = stream.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise yaml.YAMLError(f"it has more than {_LARGEST:,} bytes.")
        found = yaml.load(text.decode("utf-8"), _Loader)
    except RecursionError as error:
        raise InputError(f"{file} is no readable recipe: it is nested too deeply.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:  # dates and numbers that cannot be are ValueErrors
        raise InputError(f"{file} is no readable recipe: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is no recipe: it holds {type(found).__name__}, not settings.")
    return found


def parse_recipe(found: dict[str, Any], where: str = "recipe") -> Recipe:
    """Makes a recipe from plain values.

    Raises:
        InputError: settings that are unknown, missing or out of range, by name.
    """
    try:
        return _ANY.validate_python(found)
    except ValidationError as error:
        raise explained(error, where) from error


def explained(error: ValidationError, where: str, known: Iterable[str] = ()) -> InputError:
    """Words pydantic's error, setting by setting; `known`: names of settings beside those of a stage."""
    names = field_names() | set(known)
    return InputError(f"{where}: {'; '.join(_problem_text(problem, names) for problem in error.errors())}")


def identity(recipe: StageRecipe) -> dict[str, Any]:
    """Returns the settings that decide what is learnt; a resumed run must have the same."""
    plain = recipe.model_dump(mode="json", exclude=_FREE)
    if plain["attention"] is None:
        del plain["attention"]  # checkpoints of runs from before there was a choice go on
    if plain["data"] is not None:
        plain["data"].pop("workers")
    return plain


def field_names() -> set[str]:
    """Returns the name of every setting that any stage has."""
    models: tuple[type[BaseModel], ...] = (
        DistillLayers,
        DistillLogits,
        Sft,
        LongSft,
        DataSettings,
        SourceSettings,
        LoraSettings,
    )
    return {name for model in models for name in model.model_fields}


def _problem_text(problem: Any, names: set[str]) -> str:
    """Words one of pydantic's errors."""
    place = ".".join(str(part) for part in problem["loc"] if part not in _STAGE_NAMES)
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(place.split(".")[-1], names, n=1)
        return f"unknown setting {place!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
    if problem["type"] == "missing":
        return f"missing setting {place!r}"
    if problem["type"].startswith("union_tag"):
        return f"stage must be one of {', '.join(_STAGE_NAMES)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" + ("" if problem["type"] == "value_error" else f", not {problem['input']!r}")


_STAGE_NAMES = ("distill-layers", "distill-logits", "sft", "long-sft")
