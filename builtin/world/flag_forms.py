"""Flags as people meet them: cut to an outline, waving, with a border, shaded; not only as rectangles."""

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

from builtin.world.splits import TEST, TRAIN, VALIDATION

Colour = tuple[float, float, float]
TALL = 44 / 64  # height over width of a flag, which is letterboxed in a square
# A model that knows flags, and not their outlines, also knows those of the other splits.
OUTLINES_OF = {
    TRAIN: ("rectangle", "square", "circle", "rounded", "ellipse", "diamond", "pennant", "plaque"),
    VALIDATION: ("shield", "octagon"),
    TEST: ("heart", "hexagon"),
}
OUTLINES = tuple(name for names in OUTLINES_OF.values() for name in names)
_WIDE = ("rectangle", "ellipse", "pennant", "plaque")


@dataclass(frozen=True)
class FlagForm:
    """How a flag is cut and hung.

    outline: one of OUTLINES. shown: share of the flag's width that is seen, 0..1. wave: reach as a share of
    half the height, waves in radians over half the width, phase. shade: 0..1, light and shadow of the waves.
    border: width as a share of half the height, in `colour`, 0..255.
    """

    outline: str
    shown: float = 1.0
    wave: tuple[float, float, float] = (0.0, 1.0, 0.0)
    shade: float = 0.0
    border: float = 0.0
    colour: Colour = (0.0, 0.0, 0.0)

    def row(self) -> tuple[float, ...]:
        """All numbers in a row."""
        wide = self.outline in _WIDE
        extent = (1.0, TALL) if wide else (0.92, 0.92)
        index = float(OUTLINES.index(self.outline))
        return (index, *extent, self.shown, *self.wave, self.shade, self.border, *self.colour)


FORM_NUMBERS = len(FlagForm("rectangle").row())
NO_FORM = (0.0,) * FORM_NUMBERS


def draw_form(rng: Random, split: str, outline: str | None = None) -> FlagForm:
    """Makes up a form of an outline that the split owns; in training half of the flags wave."""
    outline = outline or rng.choice(OUTLINES_OF[split])
    shown = 1.0 if outline in _WIDE else rng.uniform(TALL, 1.0)
    more = {}
    if rng.random() < 0.5:
        waves = rng.uniform(1.5, 6)
        more = {"wave": (rng.uniform(0.05, 0.3), waves, rng.uniform(0, 2 * math.pi))}
        more |= {"shade": rng.uniform(0.05, 0.4)}
    if rng.random() < 0.4:
        level = rng.choice((rng.uniform(0, 60), rng.uniform(200, 255)))
        any_colour = (rng.uniform(0, 255), rng.uniform(0, 255), rng.uniform(0, 255))
        more |= {"border": rng.uniform(0.03, 0.14), "colour": rng.choice(((level,) * 3, any_colour))}
    return FlagForm(outline, shown, **more)


def flag_colours(points: Tensor, flags: Tensor, forms: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Colours and opacity of flags in their forms.

    Args:
        points: in each flag's own square of [-1, 1], [S, P, 2]. flags: premultiplied, [S, 4, 64, 64].
        forms: [S, FORM_NUMBERS]. size: of the square in pixels, [S].
    Returns: colours 0..255 [S, 3, P] and opacity 0..1 [S, 1, P].
    """
    columns = [column[:, None] for column in forms.unbind(1)]
    index, wide, tall, shown, reach, waves, phase, shade, border = columns[:9]
    across, down = points[..., 0] / wide, points[..., 1] / tall
    swing = waves * across + phase
    down = down + reach * swing.sin()
    every = torch.stack([_INSIDE[name](across, down) for name in OUTLINES], 1)  # asking which ones would wait
    inside = every.gather(1, index.long()[..., None].expand(-1, -1, every.shape[-1]))[:, 0]
    places = torch.stack([across * shown, down * TALL], -1).clamp(-1, 1)
    places[..., 1] = places[..., 1].clamp(-TALL * 0.97, TALL * 0.97)
    sampled = F.grid_sample(flags, places[:, None], align_corners=False)[:, :, 0]
    colours = sampled[:, :3] / (sampled[:, 3:] / 255).clamp(min=1e-3)
    colours = colours * (1 + shade * swing.cos())[:, None]
    colours = torch.where((inside < border)[:, None], forms[:, 9:12, None], colours)
    soft = size[:, None] / 2 * tall  # pixels of half the height
    return colours.clamp(0, 255), (inside * soft + 0.5).clamp(0, 1)[:, None]


def _ball(x: Tensor, y: Tensor) -> Tensor:
    return 1 - (x**2 + y**2).sqrt()


def _box(x: Tensor, y: Tensor) -> Tensor:
    return 1 - torch.maximum(x.abs(), y.abs())


def _sides(count: int, x: Tensor, y: Tensor) -> Tensor:
    """A polygon of equal sides, one of them at the bottom."""
    angles = [2 * math.pi * number / count for number in range(count)]
    reach = math.cos(math.pi / count)
    return torch.stack([reach - x * math.sin(a) - y * math.cos(a) for a in angles]).amin(0)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """(x^2 + y^2 - 1)^3 < x^2 y^3 with y upwards."""
    x, y = 1.15 * x, 0.12 - 1.12 * y
    return -(x**2 + y**2 - 1 - (x**2).pow(1 / 3) * y) / 2


def _shield(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(1 - x.abs(), torch.minimum(1 + y, 1 - x.abs() - y.clamp(min=0) ** 3))


_INSIDE = {
    "rectangle": _box,
    "square": _box,
    "circle": _ball,
    "ellipse": _ball,
    "rounded": lambda x, y: 1 - (x**4 + y**4).pow(0.25),
    "plaque": lambda x, y: 1 - (x**8 + y**8).pow(0.125),
    "diamond": lambda x, y: (1.15 - x.abs() - y.abs()) / 1.42,
    "pennant": lambda x, y: torch.minimum(1 - x.abs(), (1 - x) / 2 - y.abs() * 0.9 + 0.05),
    "shield": _shield,
    "octagon": lambda x, y: _sides(8, x, y),
    "heart": _heart,
    "hexagon": lambda x, y: _sides(6, x, y),
}
