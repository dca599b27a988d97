"""Glyph atlases: each face's capitals and figures, drawn at one cap height, with the box that each glyph
takes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from builtin.world.packs import BASELINE, CAP_HEIGHT, CELL_HEIGHT, CELL_WIDTH, CHARACTERS, FIGURES

WANTED_STYLES = 5
LOOKALIKES = ("O0", "I1", "B8", "S5", "Z2", "G6", "DO")
LOOKALIKE_LIMIT = 0.08


@dataclass
class Face:
    """One font file: `cells` uint8 [36, 40, 44], `widths` in cap heights [36] (0 where the face has no such
    glyph)."""

    name: str
    family: str
    cells: np.ndarray
    widths: np.ndarray


def draw_faces(family: str, files: list[Path]) -> list[Face]:
    """Up to five faces of a family whose capitals and figures can be told apart."""
    faces = []
    for path in _spread(files):
        face = _draw(family, path)
        if face is not None and not _ambiguous(face):
            faces.append(face)
    return faces


def _spread(files: list[Path]) -> list[Path]:
    """A few styles of a large family: upright and bold first, then evenly through the rest."""
    skipped = (
        "Symbol",
        "Dingbat",
        "Weather",
        "SEGGCHAN",
        "Initials",
        "Standard Symbols",
        "D050000L",
        "Math",
        "StandardSymbols",
        "Size",
        "NonUni",
        "IntUp",
        "IntSm",
        "VariableFont",
        "[wght]",
    )
    files = [path for path in files if not any(word in path.name for word in skipped)]
    limit = 16 if "dseg" in str(files[:1]) or len(files) > 30 else 2 * WANTED_STYLES
    plain = [path for path in files if path.stem.endswith(("-Regular", "-Bold", "Regular", "Bold"))]
    rest = [path for path in files if path not in plain]
    room = max(0, limit - len(plain))
    step = max(1, len(rest) // max(1, room))
    return (plain + rest[::step])[:limit]


def _draw(family: str, path: Path) -> Face | None:
    try:
        probe = ImageFont.truetype(str(path), 100)
    except OSError:
        return None
    figures_only = "DSEG7" in path.stem
    tall = _ink(probe, "8" if figures_only else "H")
    if tall is None:
        return None
    font = ImageFont.truetype(str(path), max(8, round(100 * CAP_HEIGHT / (tall[3] - tall[1]))))
    cells = np.zeros((len(CHARACTERS), CELL_HEIGHT, CELL_WIDTH), np.uint8)
    widths = np.zeros(len(CHARACTERS), np.float32)
    for index, character in enumerate(CHARACTERS):
        if figures_only and character not in FIGURES:
            continue
        if not _draw_glyph(font, character, cells[index], widths, index):
            return None
    return Face(path.stem, family, cells, widths)


def _ink(font: ImageFont.FreeTypeFont, character: str) -> tuple[int, int, int, int] | None:
    """Ink box relative to the pen on the baseline, or None for an empty or missing glyph."""
    box = font.getbbox(character, anchor="ls")
    missing = font.getmask("\U0010fffe").getbbox() is not None and bytes(font.getmask(character)) == bytes(
        font.getmask("\U0010fffe")
    )
    if box is None or box[2] <= box[0] or box[3] <= box[1] or missing:
        return None
    return tuple(int(edge) for edge in box)


def _draw_glyph(font, character: str, cell: np.ndarray, widths: np.ndarray, index: int) -> bool:
    ink = _ink(font, character)
    if ink is None:
        return False
    margin = 0.05 * CAP_HEIGHT
    left = min(0.0, ink[0] - margin)
    right = max(font.getlength(character), ink[2] + margin)
    if (
        right - left > 2.0 * (ink[2] - ink[0]) + 0.3 * CAP_HEIGHT
    ):  # a lone 1 in a wide fixed cell: trim the air
        air = (right - left) - (2.0 * (ink[2] - ink[0]) + 0.3 * CAP_HEIGHT)
        left, right = left + air / 2, right - air / 2
        left, right = min(left, ink[0] - margin), max(right, ink[2] + margin)
    if right - left > CELL_WIDTH or -ink[1] > BASELINE or ink[3] > CELL_HEIGHT - BASELINE:
        return False
    picture = Image.new("L", (CELL_WIDTH, CELL_HEIGHT))
    ImageDraw.Draw(picture).text((-left, BASELINE), character, fill=255, font=font, anchor="ls")
    cell[:] = np.asarray(picture)
    widths[index] = (right - left) / CAP_HEIGHT
    return True


def _ambiguous(face: Face) -> bool:
    """Whether two different characters of this face are drawn all but alike: nobody could read it."""
    for a, b in LOOKALIKES:
        first, second = (face.cells[CHARACTERS.index(c)].astype(np.float32) for c in (a, b))
        if not first.any() or not second.any():
            continue
        best = min(np.abs(first - np.roll(second, shift, 1)).sum() for shift in range(-4, 5))
        if best / (first.sum() + second.sum()) < LOOKALIKE_LIMIT:
            return True
    return False
