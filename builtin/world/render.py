"""Draw pictures of the small world: many at once, on any device, in plain torch.

A `Picture` says what stands where; `plan_pictures` turns a list of them into a few arrays (cheap, no
pixels) and
`render` into pixels. `name_patches` says from the same plan what lies under the centre of every patch.
Lengths are pixels of a 112 x 112 picture; angles are radians; colours are 0..255.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from builtin.world.damage import DAMAGE_NUMBERS, UNHARMED, Damage, damaged
from builtin.world.flag_forms import NO_FORM, FlagForm, flag_colours
from builtin.world.looks import PLAIN, PLAIN_ROW, ROOM, Look, bend, recolour, restyle
from builtin.world.packs import (
    BASELINE,
    CAP_HEIGHT,
    CELL_HEIGHT,
    CELL_WIDTH,
    CHARACTERS,
    KINDS,
    Textures,
    World,
)
from builtin.world.shapes import SHAPES, shape_masks

FRAME_SIZE = 112
PATCH = 14
MAX_CHARACTERS = 8
SPRITE, FLAG, SHAPE, DIGIT, FOREIGN = "sprite", "flag", "shape", "digit", "foreign"
BANKS = (FOREIGN, SHAPE, SPRITE, FLAG, DIGIT)  # from the lowest layer to the highest
Colour = tuple[float, float, float]


@dataclass
class Stamp:
    """One drawing: `index` in its bank, centre, height, turn, width over height, mirrored, colour or colour
    change.

    `change` is (turn of the hue, saturation, contrast, brightness added); banks of masks take `colour`
    instead. Only named drawings (SPRITE) have a `look`, and only flags a `form`.
    """

    bank: str
    index: int
    x: float
    y: float
    size: float
    angle: float = 0.0
    stretch: float = 1.0
    mirrored: bool = False
    colour: Colour = (0.0, 0.0, 0.0)
    change: tuple[float, float, float, float] = (0.0, 1.0, 1.0, 0.0)
    look: Look = PLAIN
    form: FlagForm | None = None


@dataclass
class Line:
    """One line of capitals and figures: font face, centre, cap height, turn, slant, extra room between
    characters."""

    face: int
    text: str
    x: float
    y: float
    cap: float
    colour: Colour
    angle: float = 0.0
    slant: float = 0.0
    spacing: float = 0.0


@dataclass
class Picture:
    """A ground that blends two colours (a gradient, or stripes where `stripes` > 0), drawings and text on
    it."""

    ground: tuple[Colour, Colour]
    stamps: list[Stamp] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    direction: float = 0.0
    stripes: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    damage: Damage = UNHARMED


@dataclass
class PicturePlan:
    """Pictures as arrays.

    `ground` [N, 10 + DAMAGE_NUMBERS]; `stamps` bank -> rounds of [S, 15], with their look
    [S, 15 + LOOK_NUMBERS] for named drawings and their form [S, 15 + FORM_NUMBERS] for flags;
    `lines` [L, 10 + 3 x 8].
    """

    ground: np.ndarray
    stamps: dict[str, list[np.ndarray]]
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.ground)


def plan_pictures(pictures: Sequence[Picture], world: World) -> PicturePlan:
    """The arrays that `render` needs."""
    ground, lines = [], []
    rounds: dict[str, list[list[tuple]]] = {bank: [] for bank in BANKS}
    for number, picture in enumerate(pictures):
        first, second = picture.ground
        wear = (picture.noise, picture.blur, *picture.damage.row())
        ground.append((*first, *second, picture.direction, picture.stripes, *wear))
        used = dict.fromkeys(BANKS, 0)
        for stamp in picture.stamps:
            layers = rounds[stamp.bank]
            if used[stamp.bank] == len(layers):
                layers.append([])
            layers[used[stamp.bank]].append(_stamp_row(number, stamp))
            used[stamp.bank] += 1
        lines += [_line_row(number, line, world) for line in picture.lines]
    return PicturePlan(
        np.asarray(ground, np.float32),
        {bank: [np.asarray(layer, np.float32) for layer in layers] for bank, layers in rounds.items()},
        np.asarray(lines, np.float32).reshape(len(lines), 10 + 3 * MAX_CHARACTERS),
    )


def _stamp_row(number: int, stamp: Stamp) -> tuple:
    """picture, index, centre, the matrix from pixels to [-1, 1] of the drawing, colours, look."""
    cos, sin = math.cos(stamp.angle) * 2 / stamp.size, math.sin(stamp.angle) * 2 / stamp.size
    side = (-1 if stamp.mirrored else 1) / stamp.stretch
    matrix = (cos * side, sin * side, -sin, cos)
    row = (number, stamp.index, stamp.x, stamp.y, *matrix, *stamp.colour, *stamp.change)
    if stamp.bank == FLAG:
        return row + (NO_FORM if stamp.form is None else stamp.form.row())
    if stamp.bank != SPRITE:
        return row
    return row + (PLAIN_ROW if stamp.look is PLAIN else stamp.look.row())


def line_width(text: str, widths: Sequence[float], spacing: float = 0.0) -> float:
    """Width of a text in cap heights."""
    return sum(widths[CHARACTERS.index(character)] + spacing for character in text)


def _line_row(number: int, line: Line, world: World) -> tuple:
    """picture, face, centre, turn, slant, cap height, colour; then per character its index, start and
    width."""
    if not 0 < len(line.text) <= MAX_CHARACTERS:
        raise ValueError(f"a line holds 1 to {MAX_CHARACTERS} characters, not {line.text!r}")
    widths = world.faces[line.face].widths
    indices = [CHARACTERS.index(character) for character in line.text]
    missing = [c for c, i in zip(line.text, indices, strict=True) if widths[i] == 0]
    if missing:
        raise ValueError(f"face {world.faces[line.face].name} has no {missing}")
    starts, at = [], line.spacing / 2 - line_width(line.text, widths, line.spacing) / 2
    for index in indices:
        starts.append(at)
        at += widths[index] + line.spacing
    rest = MAX_CHARACTERS - len(indices)
    return (
        number,
        line.face,
        line.x,
        line.y,
        line.angle,
        line.slant,
        line.cap,
        *line.colour,
        *indices,
        *[0] * rest,
        *starts,
        *[1e6] * rest,
        *[widths[i] for i in indices],
        *[0.0] * rest,
    )


def render(plan: PicturePlan, textures: Textures, generator: torch.Generator | None = None) -> Tensor:
    """Pixels of planned pictures: uint8 [N, 3, 112, 112] on the textures' device.

    Args:
        generator: source of the noise, on the same device; None draws without noise.
    """
    device = textures.device
    points = _pixel_centres(device)  # [P, 2]
    ground = _tensor(plan.ground, device)
    frames = _ground(ground, points)  # [N, 3, P]
    for bank in BANKS:
        for layer in plan.stamps[bank]:
            for part, colours_of in _by_look(layer):
                rows = _tensor(part, device)
                colours, alpha = colours_of(bank, rows, points, textures)
                _blend_(frames, rows[:, 0].long(), colours, alpha)
    if len(plan.lines):
        rows = _tensor(plan.lines, device)
        alpha, _ = _line_alpha(rows, points, textures.glyphs)
        _blend_(frames, rows[:, 0].long(), rows[:, 7:10, None], alpha[:, None])
    return _finish(frames.unflatten(-1, (FRAME_SIZE, FRAME_SIZE)), ground, generator)


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _pixel_centres(device: torch.device, step: int = 1) -> Tensor:
    """(x, y) of every pixel, or of the centre of every patch of `step` pixels: float32 [P, 2]."""
    axis = (torch.arange(FRAME_SIZE // step, device=device, dtype=torch.float32) + 0.5) * step
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


def _ground(rows: Tensor, points: Tensor) -> Tensor:
    along = (points - FRAME_SIZE / 2) / FRAME_SIZE
    direction = rows[:, 6]
    place = torch.stack([direction.cos(), direction.sin()], -1) @ along.T  # [N, P]
    stripes = rows[:, 7, None]
    share = torch.where(stripes > 0, 0.5 + 0.5 * (stripes * place).sin(), place + 0.5).clamp(0, 1)[:, None]
    return rows[:, :3, None] * (1 - share) + rows[:, 3:6, None] * share


def _blend_(frames: Tensor, pictures: Tensor, colours: Tensor, alpha: Tensor) -> None:
    """Paint over some pictures in place; each picture stands at most once in `pictures`."""
    below = frames[pictures]
    frames[pictures] = below + alpha * (colours - below)


def _local(rows: Tensor, points: Tensor) -> Tensor:
    """Points in the drawing's own [-1, 1] square: [S, P, 2]."""
    offset = points[None] - rows[:, None, 2:4]
    return offset @ rows[:, 4:8].unflatten(1, (2, 2)).mT


def _by_look(layer: np.ndarray) -> list[tuple[np.ndarray, Callable[..., tuple[Tensor, Tensor]]]]:
    """Rows of plain drawings and of drawings with a look or a form, and what finds their colours."""
    has_look = layer[:, 15:].any(1) if layer.shape[1] > 15 else np.zeros(len(layer), bool)
    parts = ((layer[~has_look], _stamp_colours), (layer[has_look], _look_colours))
    return [(part, colours_of) for part, colours_of in parts if len(part)]


def _look_colours(bank: str, rows: Tensor, points: Tensor, textures: Textures) -> tuple[Tensor, Tensor]:
    """Colours [S, 3, P] and opacity [S, 1, P] of drawings with a look or a form at points."""
    looks = rows[:, 15:]
    drawings = _premultiplied(_bank(bank, textures)[rows[:, 1].long()].float())
    if bank == FLAG:
        size = 2 / rows[:, 7].square().add(rows[:, 6].square()).sqrt()
        colours, alpha = flag_colours(_local(rows, points), drawings, looks, size)
        return recolour(colours, rows[:, 11:15]), alpha
    drawn = restyle(drawings, rows[:, 11:15], looks)
    places = bend(_local(rows, points), looks) / ROOM
    sampled = F.grid_sample(drawn, places[:, None], align_corners=False)[:, :, 0]
    alpha = sampled[:, 3:] / 255
    return (sampled[:, :3] / alpha.clamp(min=1e-3)).clamp(0, 255), alpha


def _stamp_colours(bank: str, rows: Tensor, points: Tensor, textures: Textures) -> tuple[Tensor, Tensor]:
    """Colours [S, 3, P or 1] and opacity [S, 1, P] of drawings at points."""
    drawings = _bank(bank, textures)[rows[:, 1].long()]
    drawings = (drawings[:, None] if drawings.dim() == 3 else drawings).float()
    if drawings.shape[1] == 4:
        drawings = _premultiplied(drawings)
    local = _local(rows, points)
    sampled = F.grid_sample(drawings, local[:, None], padding_mode=_beyond(bank), align_corners=False)[
        :, :, 0
    ]
    if bank == FOREIGN:  # whole up to its edge
        return recolour(sampled, rows[:, 11:15]), (local.abs().amax(-1) <= 1)[:, None].float()
    alpha = sampled[:, -1:] / 255
    if sampled.shape[1] == 1:
        return rows[:, 8:11, None], alpha
    return recolour(sampled[:, :3] / alpha.clamp(min=1e-3), rows[:, 11:15]), alpha


def _beyond(bank: str) -> str:
    return "border" if bank == FOREIGN else "zeros"


def _premultiplied(drawings: Tensor) -> Tensor:
    """Colour times opacity, so that edges do not pick up the colour of nothing."""
    return torch.cat([drawings[:, :3] * (drawings[:, 3:] / 255), drawings[:, 3:]], dim=1)


def _bank(bank: str, textures: Textures) -> Tensor:
    if bank == SHAPE:
        return shape_masks(textures.device)
    return getattr(textures, {SPRITE: "sprites", FLAG: "flags", DIGIT: "digits", FOREIGN: "foreign"}[bank])


def _line_alpha(rows: Tensor, points: Tensor, glyphs: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity of lines at points, float32 [L, P], and the character there, int64 [L, P] (-1: beside the
    line)."""
    cap, angle = rows[:, 6, None], rows[:, 4]
    offset = (points[None] - rows[:, None, 2:4]) / cap[..., None]  # in cap heights
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    v = offset[..., 1] * cos - offset[..., 0] * sin
    u = offset[..., 0] * cos + offset[..., 1] * sin + rows[:, 5, None] * v
    indices, starts, widths = rows[:, 10:].split(MAX_CHARACTERS, dim=1)
    slot = sum((u >= starts[:, k, None]).long() for k in range(1, MAX_CHARACTERS))
    x = (u - starts.gather(1, slot)) * CAP_HEIGHT - 0.5
    y = (v - 0.5) * CAP_HEIGHT + BASELINE - 0.5
    character = indices.gather(1, slot).long()
    inside = (x > -1) & (x < widths.gather(1, slot) * CAP_HEIGHT) & (y > -1) & (y < CELL_HEIGHT)
    base = (rows[:, 1, None].long() * len(CHARACTERS) + character) * (CELL_HEIGHT * CELL_WIDTH)
    alpha = _bilinear(glyphs.flatten(), base, x, y) * inside
    on_glyph = inside & (v > -0.6) & (v < 0.6)
    return alpha, torch.where(on_glyph, character, -1)


def _bilinear(flat: Tensor, base: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values 0..1 at (x, y) of the cells that begin at `base`."""
    left, top = x.floor(), y.floor()
    total = torch.zeros_like(x)
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = left + dx, top + dy
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            known = (column >= 0) & (column < CELL_WIDTH) & (row >= 0) & (row < CELL_HEIGHT)
            place = (
                base
                + row.clamp(0, CELL_HEIGHT - 1).long() * CELL_WIDTH
                + column.clamp(0, CELL_WIDTH - 1).long()
            )
            total += flat[place] * (weight * known)
    return total / 255


def _finish(frames: Tensor, ground: Tensor, generator: torch.Generator | None) -> Tensor:
    """Blur, noise and damage of each picture's own strength, then whole numbers."""
    soft = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    frames = frames + ground[:, 9, None, None, None] * (soft - frames)
    if generator is not None:
        noise = torch.randn(frames.shape, generator=generator, device=frames.device)
        frames = frames + ground[:, 8, None, None, None] * noise
    wear = ground[:, -DAMAGE_NUMBERS:]
    worn = wear.any(1).nonzero()[:, 0]
    if len(worn):
        frames[worn] = damaged(frames[worn].clamp(0, 255), wear[worn])
    return frames.round().clamp(0, 255).to(torch.uint8)


@dataclass
class PatchNames:
    """What lies under the centre of each patch, int64 [N, 64] in reading order; -1 where nothing of that
    sort does.

    characters: 0..35. objects: concepts, then shapes, then figures 0..9, then flags, then kinds of foreign
    pictures.
    """

    characters: Tensor
    objects: Tensor


class PatchNamer:
    """Tells from a plan what lies under the centre of every patch; the tables live on the textures'
    device."""

    def __init__(self, world: World, textures: Textures):
        self.textures = textures
        first_digit = len(world.concepts) + len(SHAPES)
        tables = {
            SPRITE: (world.sprite_concepts, 0),
            SHAPE: (range(len(SHAPES)), len(world.concepts)),
            DIGIT: (world.digit_labels, first_digit),
            FLAG: (world.flag_countries, first_digit + 10),
            FOREIGN: (world.foreign_kinds, first_digit + 10 + len(world.countries)),
        }
        self.tables = {
            bank: torch.tensor(
                [number + first for number in numbers], dtype=torch.int64, device=textures.device
            )
            for bank, (numbers, first) in tables.items()
        }
        self.num_objects = first_digit + 10 + len(world.countries) + len(KINDS)

    def __call__(self, plan: PicturePlan) -> PatchNames:
        """Names for a plan of N pictures."""
        device = self.textures.device
        points = _pixel_centres(device, PATCH)
        characters = torch.full((len(plan), len(points)), -1, dtype=torch.int64, device=device)
        objects = characters.clone()
        for bank in BANKS:
            for layer in plan.stamps[bank]:
                rows = _tensor(layer, device)
                pictures, sort = rows[:, 0].long(), self.tables[bank][rows[:, 1].long()]
                near = _local(rows, points).abs().amax(-1) < 0.9
                objects[pictures] = torch.where(near, sort[:, None], objects[pictures])
        if len(plan.lines):
            rows = _tensor(plan.lines, device)
            characters[rows[:, 0].long()] = _line_alpha(rows, points, self.textures.glyphs)[1]
        return PatchNames(characters, objects)
