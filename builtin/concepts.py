"""Concepts (a label, its kind, its keywords) and the drawings that each hand has of them."""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SPRITE_SIZE = 64
TEST_HANDS = ("emojione",)

# Subgroup prefix of emojibase -> the kind that a person would name.
KINDS = {
    "face": "face",
    "cat-face": "face",
    "monkey-face": "face",
    "heart": "heart",
    "emotion": "symbol",
    "hand": "hand",
    "hands": "hand",
    "body-parts": "part of the body",
    "person": "person",
    "family": "person",
    "animal": "animal",
    "plant": "plant",
    "food": "food",
    "drink": "drink",
    "dishware": "dishes",
    "place": "place",
    "hotel": "place",
    "transport-sign": "sign",
    "transport": "vehicle",
    "time": "clock",
    "sky-weather": "weather",
    "event": "party thing",
    "award-medal": "award",
    "sport": "sport",
    "game": "game",
    "arts-crafts": "craft",
    "clothing": "clothing",
    "sound": "sound",
    "musical-instrument": "instrument",
    "music": "music",
    "phone": "phone",
    "computer": "computer thing",
    "light-video": "light or camera",
    "book-paper": "book or paper",
    "money": "money",
    "mail": "mail",
    "writing": "writing tool",
    "office": "office thing",
    "lock": "lock or key",
    "tool": "tool",
    "science": "science tool",
    "medical": "medicine",
    "household": "household thing",
    "warning": "sign",
    "arrow": "arrow",
    "zodiac": "zodiac sign",
    "geometric": "shape",
}
COLOUR_WORDS = set("red orange yellow green blue purple pink brown grey gray white black light dark".split())
FIXED_SUBGROUPS = {
    "arrow",
    "time",
    "hand-single-finger",
    "hand-fingers-partial",
    "av-symbol",
    "alphanum",
    "keycap",
    "math",
    "punctuation",
    "zodiac",
    "religion",
    "currency",
    "other-symbol",
    "gender",
}


@dataclass
class Concept:
    """One thing with a name. `turnable` drawings may be mirrored, `recolourable` ones may change hue."""

    label: str
    kind: str
    tags: list[str]
    turnable: bool
    recolourable: bool
    code: str = ""  # code points in hexadecimal
    names: set[str] = field(default_factory=set)


def load_concepts(emojibase: Path) -> list[Concept]:
    """Every emoji but flags, skin tones and people variants, in emojibase's order."""
    groups = json.loads((emojibase / "meta/groups.json").read_text())
    formal = json.loads((emojibase / "meta/unicode-names.json").read_text())
    concepts = []
    for entry in json.loads((emojibase / "en/data.json").read_text()):
        if "group" not in entry or groups["groups"][str(entry["group"])] in ("component", "flags"):
            continue
        subgroup = groups["subgroups"][str(entry["subgroup"])]
        if subgroup.startswith(("person", "family")) or "gender" in entry:
            continue
        concepts.append(_concept(entry, subgroup, formal))
    return concepts


def _concept(entry: dict, subgroup: str, formal: dict[str, str]) -> Concept:
    label = entry["label"].replace("’", "'").replace("“", "").replace("”", "")
    words = set(re.findall(r"[a-z]+", label.lower()))
    code = entry["hexcode"]
    names = {slug(label), slug(formal.get(code) or formal.get(code.replace("-FE0F", "")) or label)}
    fixed = subgroup in FIXED_SUBGROUPS or words & {"left", "right", "tilted", "clock"}
    return Concept(
        label=plain(label),
        kind=_kind(subgroup),
        tags=[plain(tag) for tag in entry.get("tags", [])],
        turnable=not fixed,
        recolourable=not words & COLOUR_WORDS and subgroup != "geometric",
        code=code,
        names=names,
    )


def _kind(subgroup: str) -> str:
    prefixes = sorted(KINDS, key=len, reverse=True)
    return next((KINDS[prefix] for prefix in prefixes if subgroup.startswith(prefix)), "symbol")


def plain(text: str) -> str:
    """Text in ASCII: accents dropped."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def slug(text: str) -> str:
    """The form in which icon sets write names: 'cat-with-wry-smile'."""
    text = plain(text.lower().replace("’", "").replace("'", "").replace("&", " "))
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def add_older_names(concepts: list[Concept], icon_sets: dict[str, dict]) -> None:
    """Icon sets list older names as aliases of today's: give each concept all of them."""
    owner = {name: concept for concept in concepts for name in concept.names}
    for icons in icon_sets.values():
        for alias, target in icons.get("aliases", {}).items():
            pair = (alias, target["parent"])
            known = [owner[name] for name in pair if name in owner]
            if len(known) == 1 and "hFlip" not in target:
                known[0].names.update(pair)


def drawings(concepts: list[Concept], icons: dict, squeezed: bool) -> Iterator[tuple[int, str]]:
    """(concept index, SVG text) for each concept that this icon set has; `squeezed` sets write names as one
    word."""
    for index, concept in enumerate(concepts):
        for name in sorted(concept.names):
            found = find(name.replace("-", "") if squeezed else name, icons)
            if found:
                yield index, svg_of(found, icons)
                break


def find(name: str, icons: dict) -> dict | None:
    """The icon of this name or of an alias that changes nothing."""
    alias = icons.get("aliases", {}).get(name)
    if alias and not set(alias) - {"parent"}:
        name = alias["parent"]
    return icons["icons"].get(name)


def svg_of(icon: dict, icons: dict) -> str:
    """An icon as a whole SVG."""
    width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'


def rasterise(svg: str, width: int = SPRITE_SIZE, height: int = SPRITE_SIZE) -> np.ndarray:
    """An SVG as uint8 [height, width, 4], not premultiplied."""
    import io

    import resvg_py
    from PIL import Image

    data = resvg_py.svg_to_bytes(svg_string=svg, width=width, height=height)
    picture = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    if picture.size != (width, height):
        picture = picture.resize((width, height))
    return np.asarray(picture)


def same_pictures(sprites: np.ndarray, concept_of: np.ndarray, hand_of: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of concepts whose drawings are all but equal in at least two hands, so that no picture tells
    them apart."""
    votes: dict[tuple[int, int], int] = {}
    for hand in np.unique(hand_of):
        rows = np.flatnonzero(hand_of == hand)
        premultiplied = sprites[rows, ..., :3] * (sprites[rows, ..., 3:] / 255.0)
        small = np.concatenate([premultiplied, sprites[rows, ..., 3:]], -1)
        small = (
            small.reshape(len(rows), 16, 4, 16, 4, 4).mean((2, 4)).reshape(len(rows), -1).astype(np.float32)
        )
        squares = (small**2).sum(1)
        distance = (squares[:, None] + squares[None] - 2 * small @ small.T) / small.shape[1]
        for a, b in zip(*np.nonzero(np.triu(distance < 12.0, 1)), strict=True):
            pair = tuple(sorted((int(concept_of[rows[a]]), int(concept_of[rows[b]]))))
            votes[pair] = votes.get(pair, 0) + 1
    return [pair for pair, count in votes.items() if count >= 2]
