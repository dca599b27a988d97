"""The small world that scenes are made of: named drawings, shapes, colours, glyphs, figures, flags and facts.

A pack is one zip file: `meta.json` (names), WebP sheets (drawings, flags) and `.npy` arrays (glyphs,
handwriting).
`World` holds the names only, so that planning a scene needs no pictures; `Textures` holds the pictures as
tensors.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from infinitevl.errors import InputError

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
FIGURES = "0123456789"
CELL_HEIGHT, CELL_WIDTH, BASELINE, CAP_HEIGHT = 40, 44, 31, 22  # of one glyph in an atlas, in pixels
SPRITE_SIZE = 64
# Exams draw from these hands alone, so that their results stay comparable when training takes in more hands.
EXAM_HANDS = ("noto", "noto-v1", "fxemoji", "fluent", "twemoji", "emojione")
# Hands whose drawings are masks of one colour.
ONE_COLOUR_HANDS = ("fluent-contrast", "mdi", "phosphor", "tabler", "game-icons", "symbola")
FOREIGN_SIZE = 160  # of a picture that is none of this world
KINDS = ("photograph", "screenshot", "page of text", "plot", "pattern")  # of such pictures
FLAG_HEIGHT = 44  # a flag is letterboxed in a square sprite


@dataclass(frozen=True)
class Concept:
    """A thing with a name; `aliases` are labels of other concepts that look the same."""

    label: str
    kind: str
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    turnable: bool
    recolourable: bool


@dataclass(frozen=True)
class Country:
    """A country with a flag; unknown facts are empty."""

    name: str
    capital: str
    continent: str
    currency: str
    language: str


@dataclass(frozen=True)
class Face:
    """A font face: name, family and the width of each character in cap heights (0: not in this face)."""

    name: str
    family: str
    widths: tuple[float, ...]

    @property
    def figures_only(self) -> bool:
        return self.widths[0] == 0


class World:
    """Names of everything that can be drawn from one or several packs of the same build."""

    def __init__(self, metas: Sequence[dict[str, Any]]):
        first = metas[0]
        self.concepts = [
            Concept(**{**c, "tags": tuple(c["tags"]), "aliases": tuple(c["aliases"])})
            for c in first["concepts"]
        ]
        self.countries = [Country(**country) for country in first["countries"]]
        self.facts: list[list[str]] = first["facts"]
        self.hands: list[str] = first["hands"]
        self.sprite_concepts = [row[0] for meta in metas for row in meta["sprites"]]
        self.sprite_hands = [row[1] for meta in metas for row in meta["sprites"]]
        self.flag_countries = [row for meta in metas for row in meta["flags"]]
        self.faces = [
            Face(f["name"], f["family"], tuple(f["widths"])) for meta in metas for f in meta["faces"]
        ]
        self.digit_labels = [label for meta in metas for label in meta["digits"]]
        # number of KINDS and source of each foreign picture
        self.foreign_kinds = [row[0] for meta in metas for row in meta.get("foreign", [])]
        self.foreign_sources = [row[1] for meta in metas for row in meta.get("foreign", [])]
        self._index()

    def _index(self) -> None:
        self.sprites_of: dict[int, list[int]] = {}
        self.exam_sprites_of: dict[int, list[int]] = {}
        for sprite, (concept, hand) in enumerate(zip(self.sprite_concepts, self.sprite_hands, strict=True)):
            self.sprites_of.setdefault(concept, []).append(sprite)
            if self.hands[hand] in EXAM_HANDS:
                self.exam_sprites_of.setdefault(concept, []).append(sprite)
        self.known_concepts = sorted(self.exam_sprites_of)
        self.letter_faces = [i for i, face in enumerate(self.faces) if not face.figures_only]
        self.figure_faces = [i for i, face in enumerate(self.faces) if face.figures_only]
        self.kinds = sorted({concept.kind for concept in self.concepts})

    def is_one_colour(self, sprite: int) -> bool:
        """Whether a drawing is a mask, to be drawn in any colour that stands out."""
        return self.hands[self.sprite_hands[sprite]] in ONE_COLOUR_HANDS


class Textures:
    """The pictures of a world as uint8 tensors on one device.

    sprites [S, 4, 64, 64], flags [F, 4, 64, 64], glyphs [faces, 36, 40, 44], digits [D, 28, 28],
    foreign [N, 3, 160, 160].
    """

    def __init__(self, packs: Sequence["Pack"], device: torch.device | str = "cpu"):
        def join(name: str) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([pack.arrays[name] for pack in packs])).to(device)

        self.sprites = join("sprites")
        self.flags = join("flags")
        self.glyphs = join("glyphs")
        self.digits = join("digits")
        self.foreign = join("foreign")
        self.device = torch.device(device)


@dataclass
class Pack:
    """The content of one pack file."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]


def read_meta(path: str | Path) -> dict[str, Any]:
    """The names in a pack, without its pictures."""
    with _open(path) as archive:
        return json.loads(archive.read("meta.json"))


def read_pack(path: str | Path) -> Pack:
    """A pack with its pictures. Raises InputError if the file is no pack."""
    with _open(path) as archive:
        meta = json.loads(archive.read("meta.json"))
        arrays = {name: np.load(io.BytesIO(archive.read(f"{name}.npy"))) for name in ("glyphs", "digits")}
        for name, sheet in SHEETS.items():
            arrays[name] = _cut_sheets(archive, name, len(meta.get(name, [])), sheet)
    return Pack(meta, arrays)


def _open(path: str | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"cannot read the pack of drawings {path}: {error}. Build the data first, with "
            "`python -m builtin.build_data`, or say where it is."
        ) from error


def small_pack_path() -> Path:
    """The small pack of the repository: a little of everything, enough for the demo and for tests."""
    return Path(__file__).parents[1] / "data" / "small.pack"


def load_world(*paths: str | Path, device: torch.device | str = "cpu") -> tuple[World, Textures]:
    """World and pictures of one or several packs; without a path, of the small pack of the repository."""
    packs = [read_pack(path) for path in paths or (small_pack_path(),)]
    return World([pack.meta for pack in packs]), Textures(packs, device)


# ------ writing, used by the recipe


def write_pack(
    path: str | Path,
    meta: dict[str, Any],
    arrays: dict[str, np.ndarray],
    quality: int = 90,
    later: tuple[int, int] | None = None,
) -> None:
    """Write a pack; `arrays` holds sprites, flags and foreign pictures as [n, height, width, channels].

    quality: of WebP, 0..100. later: (n, another quality) for sheets whose sprites all come after the first n.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("meta.json", json.dumps(meta, separators=(",", ":")))
        for name in ("glyphs", "digits"):
            buffer = io.BytesIO()
            np.save(buffer, arrays[name])
            archive.writestr(f"{name}.npy", buffer.getvalue())
        _write_sheets(archive, "sprites", arrays["sprites"], quality, later)
        _write_sheets(archive, "flags", arrays["flags"], quality)
        _write_sheets(archive, "foreign", arrays["foreign"], FOREIGN_QUALITY)


@dataclass(frozen=True)
class Sheet:
    """Tiles side by side in one WebP file: their side in pixels, channels, tiles a row, rows a sheet."""

    side: int
    channels: int
    columns: int
    rows: int


SHEETS = {
    "sprites": Sheet(SPRITE_SIZE, 4, 32, 32),
    "flags": Sheet(SPRITE_SIZE, 4, 32, 32),
    "foreign": Sheet(FOREIGN_SIZE, 3, 16, 16),
}
FOREIGN_QUALITY = 62


def _write_sheets(
    archive: zipfile.ZipFile, name: str, tiles: np.ndarray, quality: int, later: tuple[int, int] | None = None
) -> None:
    sheet = SHEETS[name]
    per_sheet = sheet.columns * sheet.rows
    for number, start in enumerate(range(0, len(tiles), per_sheet)):
        part = tiles[start : start + per_sheet]
        rows = -(-len(part) // sheet.columns)
        padded = np.zeros((rows * sheet.columns, *tiles.shape[1:]), np.uint8)
        padded[: len(part)] = part
        grid = padded.reshape(rows, sheet.columns, *tiles.shape[1:]).swapaxes(1, 2)
        picture = Image.fromarray(grid.reshape(rows * sheet.side, sheet.columns * sheet.side, -1))
        buffer = io.BytesIO()
        chosen = later[1] if later and start >= later[0] else quality
        picture.save(buffer, "WEBP", quality=chosen, method=4)
        archive.writestr(f"{name}_{number}.webp", buffer.getvalue(), zipfile.ZIP_STORED)


def _cut_sheets(archive: zipfile.ZipFile, name: str, count: int, sheet: Sheet) -> np.ndarray:
    side, parts = sheet.side, []
    for number in range(-(-count // (sheet.columns * sheet.rows))):
        picture = Image.open(io.BytesIO(archive.read(f"{name}_{number}.webp")))
        pixels = np.asarray(picture.convert("RGBA" if sheet.channels == 4 else "RGB"))
        rows = pixels.shape[0] // side
        grid = pixels.reshape(rows, side, sheet.columns, side, -1).transpose(0, 2, 4, 1, 3)
        parts.append(grid.reshape(-1, sheet.channels, side, side))
    return np.concatenate(parts)[:count] if parts else np.zeros((0, sheet.channels, side, side), np.uint8)
