"""Make up looks that leave a drawing's name true: they stand out from the ground, and told colours stay."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from builtin.world.looks import Colour, Look

# How a drawing is filled, with weights: one whose name tells a colour, any other, one of a single colour.
_TOLD = {"as it is": 60, "inked": 25, "smooth": 15}
_FREE = {
    "as it is": 34,
    "inked": 16,
    "line drawing": 12,
    "lines alone": 6,
    "tinted": 6,
    "silhouette": 2,
    "flat": 14,
    "smooth": 10,
}
_ONE_COLOUR = {"silhouette": 75, "lines alone": 15, "line drawing": 10}


def lightness(colour: Colour) -> float:
    """0..255."""
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def draw_look(rng: Random, ground: Sequence[Colour], *, recolourable: bool, one_colour: bool) -> Look:
    """A look for a drawing on a ground of these colours.

    Args:
        recolourable: whether its name stays true in other colours.
        one_colour: whether the drawing is a mask, which takes a colour that stands out from the ground.
    """
    fillings = _ONE_COLOUR if one_colour else _FREE if recolourable else _TOLD
    found: dict[str, Any] = {**_form(rng), **_wear(rng), **_outline(rng, ground)}
    found |= _filling(rng, ground, rng.choices(list(fillings), list(fillings.values()))[0])
    if recolourable:
        found |= _tone(rng)
    return Look(**found)


def against(rng: Random, colours: Sequence[Colour], gap: float = 90.0) -> Colour:
    """A colour whose lightness is far from that of the given ones, or as far as ten tries come."""
    lights = [lightness(colour) for colour in colours]
    best, distance = (0.0, 0.0, 0.0), -1.0
    for _ in range(10):
        tried = _ink(rng)
        far = min((abs(lightness(tried) - light) for light in lights), default=255.0)
        if far > gap:
            return tried
        if far > distance:
            best, distance = tried, far
    return best


def _ink(rng: Random) -> Colour:
    """Black, white or any colour."""
    sort = rng.random()
    if sort < 0.7:
        level = rng.uniform(0, 50) if sort < 0.4 else rng.uniform(205, 255)
        return (level, level, level)
    return (rng.uniform(0, 255), rng.uniform(0, 255), rng.uniform(0, 255))


def _filling(rng: Random, ground: Sequence[Colour], name: str) -> dict[str, Any]:
    lines = {"lines": rng.uniform(0.7, 1), "thick": rng.random()}
    if name == "inked":
        return {**lines, "lines": rng.uniform(0.4, 1), "ink": _dark(rng)}
    if name == "line drawing":
        fill = against(rng, ground, 40)
        return {**lines, "ink": against(rng, [fill]), "fill": rng.uniform(0.8, 1), "fill_colour": fill}
    if name == "lines alone":
        return {**lines, "ink": against(rng, ground), "hollow": rng.uniform(0.85, 1)}
    if name == "silhouette":
        return {"fill": 1.0, "fill_colour": against(rng, ground)}
    if name == "tinted":
        return {"fill": rng.uniform(0.3, 0.6), "fill_colour": _ink(rng)}
    if name == "flat":
        return {"levels": rng.choice((3, 4, 5, 6)) - 1, "smooth": rng.choice((0, rng.random()))}
    return {"smooth": rng.uniform(0.4, 1)} if name == "smooth" else {}


def _dark(rng: Random) -> Colour:
    return (rng.uniform(0, 70), rng.uniform(0, 60), rng.uniform(0, 70))


def _outline(rng: Random, ground: Sequence[Colour]) -> dict[str, Any]:
    if rng.random() > 0.22:
        return {}
    return {"outline": rng.uniform(0.6, 2), "outline_colour": against(rng, ground, 60)}


def _form(rng: Random) -> dict[str, Any]:
    """Bent, slanted, thicker or thinner."""
    found: dict[str, Any] = {}
    if rng.random() < 0.55:
        phases = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
        waves = rng.uniform(1, 4.5)
        found["wave"] = (rng.uniform(0.02, 0.22) / waves**0.7, waves, *phases)
    if rng.random() < 0.35:
        found["shear"] = rng.gauss(0, 0.14)
    if rng.random() < 0.3:
        found["weight"] = rng.uniform(-0.5, 0.9)
    return found


def _wear(rng: Random) -> dict[str, Any]:
    """Out of focus, coarse, or with a piece cut out."""
    found: dict[str, Any] = {}
    choice = rng.random()
    if choice < 0.12:
        found["blur"] = rng.uniform(0.3, 1)
    elif choice < 0.2:
        found["coarse"] = rng.uniform(0.5, 1)
    if rng.random() < 0.12:
        found["hole"] = (rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), rng.uniform(0.1, 0.28))
    return found


def _tone(rng: Random) -> dict[str, Any]:
    """Curves of the channels, light from one side."""
    found: dict[str, Any] = {}
    if rng.random() < 0.5:
        found["curves"] = tuple(rng.gauss(0, 0.35) for _ in range(3))
    if rng.random() < 0.35:
        found["light"] = (rng.gauss(0, 0.25), rng.gauss(0, 0.25))
    return found
