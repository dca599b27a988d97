"""Loads models by name: the built-in one, the published ones, and any folder."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infinitevl.errors import CheckpointError, InputError
from infinitevl.model.attention_variants import check_variant
from infinitevl.model.fused import check_quantization, fuse_onto_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.opening import BUILTIN, BUILTIN_STAGE_2, is_builtin, is_path, open_model, place_of
from infinitevl.processing.processor.processor import InfiniteVLProcessor


@dataclass(frozen=True)
class ModelEntry:
    """A model that `load` knows by name.

    stage: of training. training_length: tokens of its longest training samples. advice: what to use it for.
    """

    name: str
    parameters: str
    stage: str
    training_length: int
    advice: str


_MODELS = (
    ModelEntry(
        BUILTIN,
        "11 M",
        "stage 3, small",
        16640,
        "comes with the package: demos, tests, trying things on a laptop",
    ),
    ModelEntry(
        BUILTIN_STAGE_2, "11 M", "stage 2, small", 1280, "the same without its adapter for long streams"
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


def list_models() -> tuple[ModelEntry, ...]:
    """Return the models that `load` knows by name, the built-in one first."""
    return _MODELS


@torch.inference_mode(False)  # its weights may be trained later
def load(
    name: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: str | None = None,
    attention: str | None = None,
) -> tuple[InfiniteVLForConditionalGeneration, InfiniteVLProcessor]:
    """Load a model and its processor.

    A folder of Qwen2.5-VL runs as it is, with full attention: sessions and states of it need a `max_length`.
    A folder that holds an adapter beside its weights (`adapter/`, as peft writes it) is loaded with the
    adapter merged.

    Args:
        name: a folder, a hub name, or None for the built-in model ("builtin-stage2": without its adapter).
        dtype: of the weights; by default bfloat16 on a GPU and the folder's own on a CPU (float32 for the
            built-in model, which is faster there).
        device: by default the first GPU if there is one, else the CPU.
        quantization: "int8", "int4" or "fp8" quantizes the weights of the decoder's products, layer by layer
            on the device. Such a model cannot be trained, moved or saved. None for full precision.
        attention: "streaming" (sinks that are never forgotten, and a window), "sliding" (a window alone) or
            "full" (all keys, up to the config's max_position_embeddings), as
            `model.attention_variants.apply_variant_` has them; None for the folder's own. A folder that the
            model is saved to keeps it.

    Raises:
        InputError: no such quantization, attention, device or dtype.
        CheckpointError: nothing usable under that name; says what to do.
    """
    device = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype is {dtype!r}; give a torch.dtype, such as torch.bfloat16, or None.")
    if quantization is not None:
        check_quantization(quantization)
    if attention is not None:
        check_variant(attention)
    source = find(name)
    is_folder = Path(source).exists()
    try:
        wanted = source if name != BUILTIN_STAGE_2 else name
        model = open_model(wanted, dtype or _dtype(name, device), attention)
        processor = InfiniteVLProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        if is_folder and isinstance(error, CheckpointError):
            raise
        raise CheckpointError(_unusable(source, error, is_folder)) from error
    if quantization is None:
        model.to(device)  # type: ignore[arg-type]
    else:
        fuse_onto_(model, device, quantization)
    return model.eval(), processor


def checked_device(name: str | torch.device) -> torch.device:
    """The device of this name, on which a tensor can live.

    Raises:
        InputError: it cannot; the message says which devices there are.
    """
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        told = f"device {str(name)!r} cannot be used here; there are: {', '.join(there)}"
        raise InputError(told) from error


def find(name: str | os.PathLike[str] | None) -> str:
    """Resolve a name to a folder, or to a name for the hub.

    Raises:
        CheckpointError: there can be no model of this name; says what to do.
    """
    text = str(name)
    if is_builtin(name) or os.path.exists(text) or is_path(text):
        return place_of(name)
    if "/" not in text:  # names of the hub have an owner
        raise CheckpointError(f"there is no model {text!r}. {_advice(text)}")
    try:
        return place_of(name)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {_advice(text)}") from error


def _dtype(name: str | os.PathLike[str] | None, device: torch.device) -> Any:
    """Return the default dtype, as transformers takes it: "auto" is the folder's own."""
    if device.type == "cuda":
        return torch.bfloat16
    return torch.float32 if is_builtin(name) else "auto"


def _unusable(source: str, error: Exception, is_folder: bool) -> str:
    text = str(error.__cause__ or error).strip() or type(error).__name__
    message = f"no model could be loaded from {source!r}: {text.splitlines()[0]}"
    return message if is_folder else f"{message} {_advice(source)}"


def _advice(name: str) -> str:
    """Say what to do about a name that is no folder and could not be downloaded."""
    names = [entry.name for entry in _MODELS]
    if name in names:
        return "It is downloaded once from the hub, which needs a network; or give a folder that holds it."
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Give a folder with config.json and weights, or one of {', '.join(names)}."
