"""Hands that joined the training later: who drew what, and which of their pictures mean something else."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from builtin.concepts import SPRITE_SIZE, Concept, find, rasterise, svg_of
from builtin.world.packs import ONE_COLOUR_HANDS


@dataclass(frozen=True)
class Hand:
    """A source of drawings; `misleading` lists labels of other things than its pictures show."""

    name: str
    misleading: str = ""

    def suits(self, concept: Concept) -> bool:
        """Whether the picture that goes by this concept's name shows it; a mask tells no colour."""
        is_true = concept.recolourable or self.name not in ONE_COLOUR_HANDS
        return is_true and concept.label not in self.misleading.split(", ")


# Icons of animals' faces go by the animals' names, which stand for whole animals here.
_FACES = "dog, cat, cow, pig, horse, rabbit, mouse, ewe, monkey, deer, goat, donkey"
ICON_HANDS = (
    Hand("fluent-colour"),
    Hand("fluent-contrast"),
    Hand("streamline", misleading="turkey, water pistol, cooking"),
    Hand(
        "mdi",
        misleading="dog, cat, cow, pig, mouse, ewe, selfie, seal, cricket, landslide, construction, "
        "hospital, satellite, high voltage, ribbon, speaker low volume, elevator, locomotive, camping, "
        "water pistol, computer disk, school, ship, ferry, seat, hotel, loudspeaker, divide, train, lacrosse",
    ),
    Hand("phosphor", misleading=f"{_FACES}, seal, cricket, minus, bird, seat"),
    Hand(
        "tabler",
        misleading="heart exclamation, dog, cat, deer, pig, mouse, cricket, rosette, world map, wood, "
        "hospital, school, mosque, elevator, joker, label, dumpling, registered",
    ),
    Hand(
        "game-icons",
        misleading="star-struck, angry face with horns, ogre, goblin, hole, tongue, pig face, ram, crab, "
        "butterfly, goat, donkey, monkey, salt, butter, fog, bank, post office, ribbon, oyster, wrench, "
        "bookmark, play button, fast-forward button, pause button, fountain, watermelon, volcano, dumpling",
    ),
    Hand(
        "icon-park",
        misleading=f"{_FACES}, selfie, seal, bat, turkey, chicken, doughnut, cooking, pie, compass, rock, "
        "bank, anchor, seat, magic wand, eyes, fireworks, treasure chest, ring, keyboard, link, clamp, "
        "elevator, copyright, scissors, softball, baseball, pill, envelope, label, sunset, sunrise, "
        "razor, shovel, mirror, brain",
    ),
)
FONT_HAND = Hand("symbola")
PICTURE_HAND = Hand("fluent-3d")
MORE_HANDS = (*(hand.name for hand in ICON_HANDS), PICTURE_HAND.name, FONT_HAND.name)
_VARIANTS = 5  # streamline numbers several drawings of a thing


def icon_pictures(hand: Hand, concepts: list[Concept], icons: dict) -> Iterator[tuple[int, np.ndarray]]:
    """(concept index, uint8 [64, 64, 4]) for each drawing of an icon set."""
    for index, concept in enumerate(concepts):
        found = _icons_of(concept, icons) if hand.suits(concept) else []
        yield from ((index, rasterise(svg_of(icon, icons))) for icon in found)


def _icons_of(concept: Concept, icons: dict) -> list[dict]:
    """The drawings under the first of a concept's names that the set knows."""
    numbers = range(1, _VARIANTS + 1) if icons["prefix"] == "streamline-emojis" else ()
    for name in sorted(concept.names):
        names = (name, *(f"{name}-{number}" for number in numbers))
        found = [icon for icon in (find(n, icons) for n in names) if icon]
        if found:
            return found
    return []


def file_pictures(concepts: list[Concept], folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    """(concept index, uint8 [64, 64, 4]) from picture files that are named by code points."""
    for index, concept in enumerate(concepts):
        code = concept.code.lower()
        for path in (folder / f"{code}.webp", folder / f"{code.replace('-fe0f', '')}.webp"):
            if path.exists():
                picture = Image.open(path).convert("RGBA")
                yield index, np.asarray(picture.resize((SPRITE_SIZE,) * 2, Image.Resampling.LANCZOS))
                break


def font_pictures(concepts: list[Concept], font: Path) -> Iterator[tuple[int, np.ndarray]]:
    """(concept index, uint8 [64, 64, 4]) from the characters of a font, in black."""
    from fontTools.ttLib import TTFont

    known = TTFont(font).getBestCmap()
    face = ImageFont.truetype(str(font), 4 * SPRITE_SIZE)
    for index, concept in enumerate(concepts):
        code = concept.code.replace("-FE0F", "")
        if FONT_HAND.suits(concept) and "-" not in code and int(code, 16) in known:
            yield index, _glyph(chr(int(code, 16)), face)


def _glyph(character: str, face: ImageFont.FreeTypeFont) -> np.ndarray:
    """A character that fills its square."""
    left, top, right, bottom = face.getbbox(character)
    side = max(right - left, bottom - top, 1)
    mask = Image.new("L", (int(side), int(side)))
    at = ((side - right - left) / 2, (side - bottom - top) / 2)
    ImageDraw.Draw(mask).text(at, character, fill=255, font=face)
    picture = np.zeros((SPRITE_SIZE, SPRITE_SIZE, 4), np.uint8)
    inner = SPRITE_SIZE - 4
    picture[2:-2, 2:-2, 3] = np.asarray(mask.resize((inner, inner), Image.Resampling.LANCZOS))
    return picture


def read_icons(package: Path) -> dict:
    """An icon set."""
    return json.loads((package / "icons.json").read_text())
