"""What quantization costs: how far logits move, and how often the likeliest token is another one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from infinitevl.bench.sizes import random_ids
from infinitevl.model.fused import fuse_, unfuse_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration

PROMPT_LENGTH = 256
PICTURE_SIDE = 32  # patches


@dataclass(frozen=True)
class Fidelity:
    """How close a quantized model's logits are to those of the same model in full.

    error: ||lower - full|| / ||full|| over all positions. agreement: part of the positions at which the
    likeliest token is the same. vision_error: as error, of the tokens of a random picture.
    """

    error: float
    agreement: float
    vision_error: float


def quantize_(model: InfiniteVLForConditionalGeneration, quantization: str) -> Fidelity:
    """Hold a model's products in `quantization`, for good: what that changes for random inputs."""
    ids = random_ids(model.config, PROMPT_LENGTH, model.device)
    patches = _random_patches(model)
    fuse_(model)  # the same kernels on both sides
    whole, whole_picture = _logits(model, ids), _picture(model, patches)
    unfuse_(model)
    fuse_(model, quantization=quantization)
    lower, picture = _logits(model, ids), _picture(model, patches)
    agreement = (lower.argmax(-1) == whole.argmax(-1)).float().mean().item()
    return Fidelity(_error(lower, whole), agreement, _error(picture, whole_picture))


def _error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@torch.no_grad()
def _logits(model: InfiniteVLForConditionalGeneration, ids: Tensor) -> Tensor:
    """float32 [1, T, vocabulary]."""
    return model(input_ids=ids, use_cache=False).logits.float()


@torch.no_grad()
def _picture(model: InfiniteVLForConditionalGeneration, patches: Tensor) -> Tensor:
    """float32 [tokens, C]."""
    return model.model.visual(patches, [(1, PICTURE_SIDE, PICTURE_SIDE)]).float()


def _random_patches(model: InfiniteVLForConditionalGeneration) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    patches = torch.randn(PICTURE_SIDE**2, model.config.vision_config.patch_dim, generator=draw)
    return patches.to(model.device, model.dtype)
