"""Named colours and shapes."""

import functools
import math

import torch
from torch import Tensor

COLOURS = {
    "red": (220, 30, 35),
    "orange": (245, 135, 15),
    "yellow": (250, 220, 40),
    "green": (35, 155, 60),
    "blue": (35, 80, 215),
    "purple": (125, 45, 170),
    "pink": (250, 145, 195),
    "brown": (120, 70, 35),
    "gray": (130, 130, 130),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SIGN_COLOURS = tuple(name for name in COLOURS if name != "black")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "hexagon")
_SIDE = 64


@functools.lru_cache(maxsize=4)
def shape_masks(device: torch.device) -> Tensor:
    """One mask a shape, in the order of SHAPES: uint8 [8, 64, 64]."""
    axis = torch.linspace(-1, 1, _SIDE, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius, angle = (x**2 + y**2).sqrt(), torch.atan2(x, -y)
    edges = {
        "circle": 0.95 - radius,
        "square": 0.86 - torch.maximum(x.abs(), y.abs()),
        "triangle": torch.minimum(0.8 - y, (y + 0.95) * 0.5 - x.abs()),
        "star": _star(radius, angle),
        "diamond": 0.95 - x.abs() * 1.25 - y.abs(),
        "cross": torch.minimum(0.9 - torch.maximum(x.abs(), y.abs()), 0.32 - torch.minimum(x.abs(), y.abs())),
        "ring": torch.minimum(0.95 - radius, radius - 0.58),
        "hexagon": _polygon(x, y, 6),
    }
    return torch.stack([((edges[name] * _SIDE / 2).clamp(-0.5, 0.5) + 0.5) * 255 for name in SHAPES]).to(
        torch.uint8
    )


def _star(radius: Tensor, angle: Tensor) -> Tensor:
    """Distance (roughly) inside a star of five points, one of them up."""
    fifth = 2 * math.pi / 5
    folded = (torch.remainder(angle + fifth / 2, fifth) - fifth / 2).abs()
    outer, inner = 0.98, 0.42
    tip = (outer, 0.0)
    dent = (inner * math.cos(fifth / 2), inner * math.sin(fifth / 2))
    px, py = radius * folded.cos(), radius * folded.sin()
    edge = (dent[0] - tip[0], dent[1] - tip[1])
    return ((px - tip[0]) * -edge[1] + (py - tip[1]) * edge[0]) / -math.hypot(*edge) * -1


def _polygon(x: Tensor, y: Tensor, sides: int) -> Tensor:
    normals = [2 * math.pi * (k + 0.5) / sides for k in range(sides)]
    return torch.stack([0.85 - x * math.sin(a) - y * math.cos(a) for a in normals]).amin(0)
