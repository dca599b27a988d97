"""Models by name: the built-in one, the published ones, and any folder."""

import difflib
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from infinitevl.errors import CheckpointError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.processor import InfiniteVLProcessor

BUILTIN = "builtin"


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be named.

    stage: of training. training_length: tokens of its longest training samples. advice: what to use it for.
    """

    name: str
    parameters: str
    stage: str
    training_length: int
    advice: str


CATALOGUE = (
    ModelEntry(
        BUILTIN,
        "11 M",
        "supervised, small",
        1200,
        "comes with the package: demos, tests, trying things on a laptop",
    ),
    ModelEntry(
        "hustvl/InfiniteVL",
        "4 B",
        "stage 2, instruction tuning",
        8192,
        "to chat about pictures and to fine-tune",
    ),
    ModelEntry("hustvl/InfiniteVL-LongSFT", "4 B", "stage 3, long sequences", 32768, "to watch streams"),
)


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[InfiniteVLForConditionalGeneration, InfiniteVLProcessor]:
    """A model and its processor, ready to answer.

    Args:
        name: a folder, a hub name, or None for the built-in model.
        dtype: of the weights; by default bfloat16 on a GPU and the folder's own on a CPU (float32 for the
            built-in model, which is faster there).
        device: by default the first GPU if there is one, else the CPU.

    Raises:
        CheckpointError: nothing usable under that name; says what to do.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = _folder(name)
    dtype = dtype or _dtype(name, device)
    try:
        model = InfiniteVLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        processor = InfiniteVLProcessor.from_pretrained(folder)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(_unusable(name, error)) from error
    return model.to(device).eval(), processor


def builtin_folder() -> Path:
    """Where the built-in model lies in the installed package."""
    return Path(str(resources.files("infinitevl"))) / "assets" / BUILTIN


def _dtype(name: str | os.PathLike[str] | None, device: torch.device) -> Any:
    """What transformers takes as dtype: "auto" is the folder's own."""
    if device.type == "cuda":
        return torch.bfloat16
    return torch.float32 if name in (None, BUILTIN) else "auto"


def _folder(name: str | os.PathLike[str] | None) -> str:
    if name is None or name == BUILTIN:
        return str(builtin_folder())
    if not Path(name).exists() and (os.sep in str(name) and str(name).count("/") != 1):
        raise CheckpointError(
            f"there is no folder {name}. Give a folder with config.json and weights, or a name."
        )
    return str(name)


def _unusable(name: str | os.PathLike[str] | None, error: Exception) -> str:
    names = [entry.name for entry in CATALOGUE]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close and close[0] != name else ""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"no model could be loaded from {name!r}: {first_line}{hint} "
        f"Give a folder with config.json and weights, or one of {', '.join(names)}."
    )
