"""AdamW: the groups of its weights, and its learning rate over a run."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from infinitevl.training.settings import TrainerSettings

# Settings and the number of a step (0, 1, ...) -> learning rate.
Schedule = Callable[[TrainerSettings, int], float]


def cosine(settings: TrainerSettings, step: int) -> float:
    """Returns the learning rate of a step: linear over the warm-up, then a cosine down to zero."""
    warm = math.ceil(settings.warm_up * settings.num_steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(settings.num_steps - warm, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_adamw(
    weights: Mapping[str, nn.Parameter], settings: TrainerSettings, lr_scale: Callable[[str], float]
) -> torch.optim.AdamW:
    """Makes AdamW over the named weights; the fused one on a GPU.

    Matrices decay. Norms, biases, convolution weights and the decay rates of a Gated DeltaNet do not.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for scale in dict.fromkeys(map(lr_scale, weights)):
        groups |= {(scale, True): [], (scale, False): []}
    for name, weight in weights.items():
        groups[lr_scale(name), weight.dim() == 2].append(weight)
    is_cuda = all(weight.is_cuda for weight in weights.values())
    return torch.optim.AdamW(
        [_group(found, settings, *key) for key, found in groups.items() if found],
        betas=settings.betas,
        fused=True if is_cuda else None,
    )


def _group(
    weights: list[nn.Parameter], settings: TrainerSettings, scale: float, decays: bool
) -> dict[str, Any]:
    weight_decay = settings.weight_decay if decays else 0.0
    return {
        "params": weights,
        "weight_decay": weight_decay,
        "lr": settings.learning_rate * scale,
        "scale": scale,
    }


@torch.no_grad()
def clip_gradients_(weights: Mapping[str, nn.Parameter], norm: float, limit: float) -> None:
    """Scales gradients whose total norm is `norm` down to `limit`, in place."""
    if norm > limit:
        gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))


def set_learning_rate_(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group, each times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
