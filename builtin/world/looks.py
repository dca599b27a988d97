"""How a drawing is drawn: lines, fills, outlines, light, wear; so that one drawing stands for many hands.

A `Look` is a set of numbers; all of them zero leave a drawing as it is. `restyle` changes drawings in their
own square, `bend` the points at which they are looked up.
"""

import math
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

Colour = tuple[float, float, float]
SIDE, MARGIN = 64, 4  # of a drawing in pixels, and the room around it for outlines
ROOM = (SIDE + 2 * MARGIN) / SIDE
NO_COLOUR: Colour = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Look:
    """Shares are 0..1, colours 0..255, places and lengths in a drawing's own square of [-1, 1].

    lines: strength of ink where colour or opacity changes, `thick` ones up to two pixels wide. fill: share of
    the colours that `fill_colour` takes the place of. hollow: share of the opacity that is taken away.
    outline: width of a band around everything in pixels, up to 2. weight: thicker (> 0) or thinner (< 0).
    levels: steps of each colour channel. smooth: towards the mean colour around. blur: out of focus. coarse:
    towards pixels of 2. curves: logarithms of gammas of red, green and blue. light: brighter towards this
    direction. wave: reach, waves, and two phases of a bend. shear: x added per y. hole: centre and half a
    side of a square that is cut out.
    """

    lines: float = 0.0
    thick: float = 0.0
    fill: float = 0.0
    hollow: float = 0.0
    outline: float = 0.0
    weight: float = 0.0
    levels: float = 0.0
    smooth: float = 0.0
    blur: float = 0.0
    coarse: float = 0.0
    ink: Colour = NO_COLOUR
    fill_colour: Colour = NO_COLOUR
    outline_colour: Colour = NO_COLOUR
    curves: tuple[float, float, float] = NO_COLOUR
    light: tuple[float, float] = (0.0, 0.0)
    wave: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    shear: float = 0.0
    hole: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def row(self) -> tuple[float, ...]:
        """All numbers in a row."""
        values = (value if isinstance(value, tuple) else (value,) for value in astuple(self))
        return tuple(number for value in values for number in value)


PLAIN = Look()
PLAIN_ROW = PLAIN.row()
LOOK_NUMBERS = len(PLAIN_ROW)
_WIDTHS = [len(d) if isinstance(d := field.default, tuple) else 1 for field in fields(Look)]


class _Columns:
    """The numbers of S looks by name, each [S, width, 1, 1]."""

    def __init__(self, rows: Tensor):
        for field, part in zip(fields(Look), rows.split(_WIDTHS, dim=1), strict=True):
            setattr(self, field.name, part[..., None, None])

    def __getattr__(self, name: str) -> Tensor:
        raise AttributeError(f"looks have no {name}")


# ------ on the device


def bend(points: Tensor, looks: Tensor) -> Tensor:
    """Where in a drawing's [-1, 1] square to look up points of it: [S, P, 2] -> [S, P, 2]."""
    look = _Columns(looks)
    reach, waves, first, second = look.wave[..., 0].unbind(1)  # [S, 1] each
    x, y = points.unbind(-1)
    bent_x = x + look.shear[:, 0, 0] * y + reach * (waves * y + first).sin()
    return torch.stack([bent_x, y + reach * (waves * x + second).sin()], dim=-1)


def restyle(drawings: Tensor, changes: Tensor, looks: Tensor) -> Tensor:
    """Drawings in their looks.

    Args:
        drawings: premultiplied colour and opacity 0..255, [S, 4, 64, 64].
        changes: turn of the hue, saturation, contrast, brightness, [S, 4].
        looks: [S, LOOK_NUMBERS].
    Returns: the same with a margin, [S, 4, 72, 72].
    """
    look = _Columns(looks)
    worn = _worn(F.pad(drawings, (MARGIN,) * 4) / 255, look)
    colours, alpha = _straight(worn, look)
    colours = _toned(recolour(colours * 255, changes) / 255, look)
    alpha = _weighed(_holed(alpha, look), look)
    ink = _ink(torch.cat([colours * alpha, alpha], 1), look)
    colours = torch.lerp(colours, look.fill_colour / 255, look.fill)
    alpha = alpha * (1 - look.hollow)
    drawn = _over(look.ink / 255, ink, torch.cat([colours * alpha, alpha], 1))
    return 255 * _outlined(drawn, look)


def recolour(colours: Tensor, change: Tensor) -> Tensor:
    """Turn the hue (about the grey axis), then saturation, contrast and brightness: [S, 3, ...]."""
    shape = (-1, *(1,) * (colours.dim() - 1))
    turn, saturation, contrast, brightness = (x.view(shape) for x in change.unbind(1))
    cos, sin = turn.cos(), turn.sin()
    grey = colours.mean(1, keepdim=True)
    chroma = colours - grey
    crossed = (chroma.roll(1, 1) - chroma.roll(-1, 1)) / math.sqrt(3)
    turned = grey + saturation * (cos * chroma + sin * crossed)
    return ((turned - 128) * contrast + 128 + brightness).clamp(0, 255)


def _mean(pixels: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(pixels, side, 1, side // 2, count_include_pad=False)


def _most(pixels: Tensor, side: int) -> Tensor:
    return F.max_pool2d(pixels, side, 1, side // 2)


def _worn(pixels: Tensor, look: _Columns) -> Tensor:
    """Out of focus, or in coarse pixels."""
    coarse = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2.0)
    pixels = torch.lerp(pixels, coarse, look.coarse)
    return torch.lerp(pixels, _mean(pixels, 5), look.blur)


def _straight(pixels: Tensor, look: _Columns) -> tuple[Tensor, Tensor]:
    """Colours, smooth ones if the look says so and carried a little past the edge, and opacity."""
    alpha, around = pixels[:, 3:], _mean(pixels, 7)
    near = around[:, :3] / around[:, 3:].clamp(min=1e-3)
    own = pixels[:, :3] / alpha.clamp(min=1e-3)
    share = torch.maximum(look.smooth, 1 - (4 * alpha).clamp(max=1))
    return torch.lerp(own, near, share).clamp(0, 1), alpha


def _toned(colours: Tensor, look: _Columns) -> Tensor:
    """Fewer levels, a curve for each channel, light from one side."""
    steps = look.levels.clamp(min=1)
    colours = torch.where(look.levels > 0, (colours * steps).round() / steps, colours)
    colours = colours.clamp(min=1e-4) ** look.curves.exp()
    y, x = _axes(colours)
    return (colours * (1 + look.light[:, :1] * x + look.light[:, 1:] * y)).clamp(0, 1)


def _axes(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """y [H, 1] and x [1, W] of pixel centres in the drawing's own square."""
    axis = torch.linspace(-ROOM, ROOM, pixels.shape[-1], device=pixels.device)
    return axis[:, None], axis[None]


def _holed(alpha: Tensor, look: _Columns) -> Tensor:
    y, x = _axes(alpha)
    centre_x, centre_y, half = look.hole.unbind(1)
    inside = ((x - centre_x).abs() < half) & ((y - centre_y).abs() < half)
    return alpha * ~inside[:, None]


def _weighed(alpha: Tensor, look: _Columns) -> Tensor:
    more, less = look.weight.clamp(min=0), (-look.weight).clamp(min=0)
    return alpha + more * (_most(alpha, 3) - alpha) + less * (-_most(-alpha, 3) - alpha)


def _ink(pixels: Tensor, look: _Columns) -> Tensor:
    """How much ink lies on each pixel: where neighbours differ in colour or opacity, [S, 1, H, W]."""
    thin, thick = (_most(pixels, side) + _most(-pixels, side) for side in (3, 5))
    edges = torch.lerp(thin, thick, look.thick).amax(1, keepdim=True)
    return ((edges - 0.16) * 4).clamp(0, 1) * look.lines


def _over(colour: Tensor, cover: Tensor, below: Tensor) -> Tensor:
    """One colour [S, 3, 1, 1] laid over premultiplied pixels where `cover` [S, 1, H, W] says."""
    return torch.cat([colour * cover, cover], 1) + below * (1 - cover)


def _outlined(drawn: Tensor, look: _Columns) -> Tensor:
    """A band of one colour beneath the drawing that reaches past its edge."""
    alpha = drawn[:, 3:]
    near = torch.lerp(alpha, _most(alpha, 3), look.outline.clamp(max=1))
    band = torch.lerp(near, _most(alpha, 5), (look.outline - 1).clamp(min=0)) * (look.outline > 0)
    rest = (1 - alpha) * band
    return drawn + torch.cat([look.outline_colour / 255 * rest, rest], 1)
