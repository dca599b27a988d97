"""What happens to pictures between the hand and the eye: too dark, out of focus, too small, compressed."""

import functools
import math
from dataclasses import astuple, dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8  # pixels a side of what JPEG compresses at once
_LUMA = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 "
    "72 92 95 98 112 100 103 99"
)
_CHROMA = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 "
    + "99 " * 32
)
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True)
class Damage:
    """All zero: none.

    dark: share of the light that is lost. lift: added to all channels, 0..255. gamma: logarithm of the
    exponent. soft: 0..6, times that neighbours are averaged. coarse: 0..1, towards half the resolution.
    jpeg: quality 1..100 of compression, 0: none.
    """

    dark: float = 0.0
    lift: float = 0.0
    gamma: float = 0.0
    soft: float = 0.0
    coarse: float = 0.0
    jpeg: float = 0.0

    def row(self) -> tuple[float, ...]:
        """All numbers in a row."""
        return astuple(self)


UNHARMED = Damage()
DAMAGE_NUMBERS = len(UNHARMED.row())


def draw_damage(rng: Random, most: float = 1.0) -> Damage:
    """Makes up damage that leaves a picture readable.

    Args:
        most: 0..1, how strong blur and coarseness may be; small writing bears little.
    """
    found: dict[str, float] = {}
    if rng.random() < 0.35:
        found |= {"dark": rng.uniform(0.2, 0.5 + 0.25 * most), "lift": rng.uniform(0, 20)}
    elif rng.random() < 0.25:
        found |= {"dark": rng.uniform(0.1, 0.5), "lift": rng.uniform(40, 110)}
    if rng.random() < 0.3:
        found["gamma"] = rng.uniform(-0.5, 0.6)
    if rng.random() < 0.4:
        found["soft"] = rng.uniform(0.4, 1 + 3 * most)
    elif rng.random() < 0.4:
        found["coarse"] = rng.uniform(0.2, 0.3 + 0.7 * most)
    if rng.random() < 0.55 or not found:
        found["jpeg"] = rng.uniform(8 if most > 0.6 else 25, 80)
    return Damage(**found)


def damaged(frames: Tensor, rows: Tensor) -> Tensor:
    """Returns pictures 0..255, [N, 3, H, W], after damage [N, DAMAGE_NUMBERS]; H and W are multiples of 8."""
    dark, lift, gamma, soft, coarse, quality = (
        column[:, None, None, None] for column in rows.to(frames).unbind(1)
    )
    small = F.interpolate(F.avg_pool2d(frames, 2), scale_factor=2.0, mode="bilinear")
    frames = torch.lerp(frames, small, coarse)
    for number in range(6):
        blurred = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
        frames = torch.lerp(frames, blurred, (soft - number).clamp(0, 1))
    lit = 255 * (frames / 255).clamp(1e-4, 1) ** gamma.exp()
    frames = (lit * (1 - dark) + lift).clamp(0, 255)
    return torch.where(quality > 0, _compressed(frames, quality), frames)


def _compressed(frames: Tensor, quality: Tensor) -> Tensor:
    """Returns what JPEG leaves of pictures: rounded cosine coefficients of 8 x 8 blocks, no subsampling."""
    matrix, tables, cosines = _constants(frames.device)
    planes = torch.einsum("ij,njhw->nihw", matrix, frames - 128)
    blocks = planes.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)  # [N, 3, h, w, 8, 8]
    quality = quality.clamp(min=1)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[..., None, None]
    steps = ((tables[None, :, None, None] * scale + 50) / 100).floor().clamp(1, 255)
    kept = (cosines @ blocks @ cosines.T / steps).round() * steps
    planes = (cosines.T @ kept @ cosines).transpose(3, 4).flatten(2, 3).flatten(3, 4)
    return (torch.einsum("ij,njhw->nihw", matrix.inverse(), planes) + 128).clamp(0, 255)


@functools.lru_cache(maxsize=4)
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Colours to luma and chroma [3, 3], steps of the coefficients [3, 8, 8], cosines [8, 8]."""
    matrix = torch.tensor(_TO_YCC, device=device)
    luma, chroma = (
        torch.tensor([float(step) for step in text.split()]).view(BLOCK, BLOCK) for text in (_LUMA, _CHROMA)
    )
    tables = torch.stack([luma, chroma, chroma]).to(device)
    place, wave = torch.arange(BLOCK) + 0.5, torch.arange(BLOCK)[:, None]
    cosines = (math.pi * wave * place / BLOCK).cos() * math.sqrt(2 / BLOCK)
    cosines[0] /= math.sqrt(2)
    return matrix, tables, cosines.to(device)
