"""LoRA adapters in peft's file format, added into a model's projections once and for all; needs no peft."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from infinitevl.errors import CheckpointError

FOLDER = "adapter"  # beside the weights that it belongs to
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# Settings that would make it another sum than W + alpha / r B A.
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
    "modules_to_save": None,
}


@torch.no_grad()
def merge_(model: nn.Module, folder: Path) -> int:
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
    weights, pairs = dict(model.named_parameters()), _pairs(load_file(folder / WEIGHTS), folder)
    for name, (down, up) in pairs.items():
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
    for name, plain in _PLAIN.items():
        if config.get(name, plain) not in (plain, None):
            raise CheckpointError(
                f"{path} has {name}: {config[name]!r}, which is not merged here. Merge it with peft "
                "(merge_and_unload) and save the model."
            )
    return config


def _pairs(weights: dict[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each adapted projection, by its name."""
    names = [name.removeprefix(_PREFIX).removesuffix(_DOWN) for name in weights if name.endswith(_DOWN)]
    wanted = {_PREFIX + name + end for name in names for end in (_DOWN, _UP)}
    if set(weights) != wanted:
        odd = sorted(set(weights) ^ wanted)
        raise CheckpointError(f"{folder} holds other weights than pairs of A and B: {odd[0]} and so on.")
    return {name: (weights[_PREFIX + name + _DOWN], weights[_PREFIX + name + _UP]) for name in names}
