"""What quantization costs: how far logits move, and how often the likeliest token is another one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from infinitevl.bench.sizes import random_ids
from infinitevl.model.fused import fuse_, unfuse_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration

PROMPT_LENGTH = 256


@dataclass(frozen=True)
class Fidelity:
    """How close a quantized model's logits are to those of the same model in full.

    error: ||lower - full|| / ||full|| over all positions. agreement: part of the positions at which the
    likeliest token is the same.
    """

    error: float
    agreement: float


def quantize_(model: InfiniteVLForConditionalGeneration, quantization: str) -> Fidelity:
    """Hold a model's products in `quantization`, for good: what that changes for a random prompt."""
    ids = random_ids(model.config, PROMPT_LENGTH, model.device)
    fuse_(model)  # the same kernels on both sides
    whole = _logits(model, ids)
    unfuse_(model)
    fuse_(model, quantization=quantization)
    lower = _logits(model, ids)
    agreement = (lower.argmax(-1) == whole.argmax(-1)).float().mean().item()
    return Fidelity(((lower - whole).norm() / whole.norm()).item(), agreement)


@torch.no_grad()
def _logits(model: InfiniteVLForConditionalGeneration, ids: Tensor) -> Tensor:
    """float32 [1, T, vocabulary]."""
    return model(input_ids=ids, use_cache=False).logits.float()
