"""Pictures as people show them: signs on plates of any size anywhere, photographs behind, foreign pictures.

What is known and what is foreign: a drawing, sign, digit, flag or group of the world is known on any ground,
a photograph among them, and however dark, soft or compressed. A picture is foreign if it holds none of these.
"""

import math
from random import Random

from builtin.world.damage import UNHARMED, Damage, draw_damage
from builtin.world.packs import KINDS, World
from builtin.world.render import FOREIGN, FRAME_SIZE, SHAPE, Colour, Stamp
from builtin.world.shapes import SHAPES

_SQUARE_SIDE = 0.86  # of the square among the shapes, in its own [-1, 1]
_GROUNDS = (KINDS.index("photograph"), KINDS.index("pattern"))


def foreign_stamp(rng: Random, index: int, plain: bool = False) -> Stamp:
    """A foreign picture that fills the frame: a part of it or all, mirrored, turned, recoloured.

    plain: as the exams show it, whole or a part.
    """
    part = (
        rng.uniform(0.75, 1.0) if plain else rng.choice((1.0, rng.uniform(0.3, 1.0), rng.uniform(0.6, 1.0)))
    )
    size = FRAME_SIZE / part
    slack = (size - FRAME_SIZE) / 2
    x, y = (FRAME_SIZE / 2 + rng.uniform(-slack, slack) for _ in range(2))
    if plain:
        return Stamp(FOREIGN, index, x, y, size)
    angle = rng.gauss(0, 0.12) if rng.random() < 0.3 else 0.0
    size *= 1 + 1.2 * abs(angle)  # no corner of the frame stays empty
    stretch = rng.uniform(0.75, 1.35)
    if stretch < 1 and rng.random() < 0.7:
        size /= stretch
    grey = rng.random() < 0.12
    change = (
        rng.gauss(0, 0.25) if rng.random() < 0.5 else 0.0,
        0.0 if grey else rng.uniform(0.4, 1.5),
        rng.uniform(0.6, 1.3),
        rng.uniform(-35, 35),
    )
    return Stamp(FOREIGN, index, x, y, size, angle, stretch, rng.random() < 0.4, change=change)


def ground_stamp(rng: Random, world: World) -> Stamp | None:
    """A photograph or a pattern to stand behind known things; None where the world has none."""
    known = [number for number, kind in enumerate(world.foreign_kinds) if kind in _GROUNDS]
    return foreign_stamp(rng, rng.choice(known)) if known else None


def plate_stamp(rng: Random, x: float, y: float, half: tuple[float, float], colour: Colour) -> Stamp:
    """A plate of a colour around a centre; `half`: half its width and height in pixels."""
    wide, tall = (side + rng.uniform(2, 9) for side in half)
    size = 2 * tall / _SQUARE_SIDE
    return Stamp(SHAPE, SHAPES.index("square"), x, y, size, stretch=wide / tall, colour=colour)


def cap_height(rng: Random, width: float) -> float:
    """Of a sign at any size: pixels; `width` of its text in cap heights. Small ones stay readable."""
    most = min(44.0, 108 / (width + 0.3))
    least = min(most, 9.5)
    return least + (most - least) * rng.random() ** 1.5


def place_of(rng: Random, half: tuple[float, float]) -> tuple[float, float]:
    """Any centre at which something of this half width and height stands inside the frame."""
    x, y = (FRAME_SIZE / 2 + rng.uniform(-1, 1) * max(0.0, FRAME_SIZE / 2 - 1 - side) for side in half)
    return x, y


def wear(rng: Random, share: float, most: float = 1.0) -> Damage:
    """Damage in a share of the pictures; `most` as of `draw_damage`."""
    return draw_damage(rng, most) if share > 0 and rng.random() < share else UNHARMED


def reach_of(width: float, cap: float, turn: float) -> tuple[float, float]:
    """Half the width and half the height of a line of text that is turned, in pixels."""
    half = (width + 0.3) * cap / 2
    return half * math.cos(turn) + abs(math.sin(turn)) * cap, cap * 0.75 + half * abs(math.sin(turn))
