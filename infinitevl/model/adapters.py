"""LoRA adapters in peft's file format, added into a model's projections once and for all; needs no peft."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from infinitevl.errors import CheckpointError

FOLDER = "adapter"  # beside the weights that it belongs to
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# Settings of an adapter whose sum is W + alpha / r B A, whatever their value: where it was put, how it was
# trained, and what only counts beside another setting.
_ANY = frozenset(
    "r lora_alpha lora_dropout target_modules exclude_modules layers_to_transform layers_pattern task_type "
    "inference_mode base_model_name_or_path revision auto_mapping peft_version megatron_core "
    "qalora_group_size eva_config".split()
)
# Starts that leave the base's weights as they are; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change them.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# Every other field, known or not, must ask for nothing.
_NOTHING: tuple[Any, ...] = (None, False, {}, [])


@torch.no_grad()
def merge_adapter_(model: nn.Module, folder: Path) -> int:
    """Add the adapter in `folder` into the weights of `model`, in place: W + alpha / r B A.

    Sums are float32, or float64 where the weights are.

    Returns:
        How many projections it changed.

    Raises:
        CheckpointError: files are missing, it is no plain LoRA, or it belongs to another model.
    """
    config = _read_config(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}. Copy the whole folder, or remove it.")
    scale = config["lora_alpha"] / config["r"]
    weights, pairs = dict(model.named_parameters()), _pairs(_read_weights(folder / WEIGHTS), folder)
    for name, (down, up) in pairs.items():
        _check_rank(folder, name, down, up, config["r"])
        weight = weights.get(f"{name}.weight")
        if weight is None or weight.shape != (len(up), down.shape[1]):
            found = "no such projection" if weight is None else list(weight.shape)
            raise CheckpointError(
                f"{folder} adapts {name} as [{len(up)}, {down.shape[1]}], and this model has {found}. It "
                "belongs to another model."
            )
        wide = torch.promote_types(weight.dtype, torch.float32)
        down, up = (part.to(weight.device, wide) for part in (down, up))
        weight.copy_(weight.to(wide) + scale * (up @ down))
    return len(pairs)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable adapter configuration: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds {type(config).__name__}; an adapter's settings are an object.")
    for name, value in config.items():
        if not _is_plain(name, value):
            raise CheckpointError(
                f"{path} has {name}: {value!r}, which is not merged here. Merge it with peft "
                "(merge_and_unload) and save the model."
            )
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if not (type(rank) is int and rank > 0 and type(alpha) in (int, float) and math.isfinite(alpha)):
        raise CheckpointError(
            f"{path} has r: {rank!r} and lora_alpha: {alpha!r}; both are numbers, r above 0."
        )
    return config


def _is_plain(name: str, value: Any) -> bool:
    """Whether a setting leaves the adapter the sum W + alpha / r B A."""
    if name == "peft_type":
        return bool(value == "LORA")
    if name == "bias":
        return value in ("none", None)
    if name == "init_lora_weights":
        return any(value is start or (value == start and isinstance(value, str)) for start in _STARTS)
    return name in _ANY or any(type(value) is type(nothing) and value == nothing for nothing in _NOTHING)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not readable ({error}). It may be damaged; copy it again."
        ) from error


def _check_rank(folder: Path, name: str, down: Tensor, up: Tensor, rank: int) -> None:
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != rank or up.shape[1] != rank:
        raise CheckpointError(
            f"{folder} adapts {name} with A {list(down.shape)} and B {list(up.shape)}, and its settings say "
            f"r: {rank}. They do not belong together; copy the whole folder again."
        )


def _pairs(weights: dict[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each adapted projection, by its name."""
    names = [name.removeprefix(_PREFIX).removesuffix(_DOWN) for name in weights if name.endswith(_DOWN)]
    wanted = {_PREFIX + name + end for name in names for end in (_DOWN, _UP)}
    if set(weights) != wanted:
        odd = sorted(set(weights) ^ wanted)
        raise CheckpointError(f"{folder} holds other weights than pairs of A and B: {odd[0]} and so on.")
    return {name: (weights[_PREFIX + name + _DOWN], weights[_PREFIX + name + _UP]) for name in names}
