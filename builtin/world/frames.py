"""Frames with a known content: a sign, a thing, a handwritten figure, a flag, a group of things on a grid."""

import math
from dataclasses import dataclass, replace
from random import Random

from builtin.world.draw_look import draw_look, lightness
from builtin.world.flag_forms import draw_form
from builtin.world.packs import CHARACTERS, FIGURES, KINDS, World
from builtin.world.render import (
    DIGIT,
    FLAG,
    FRAME_SIZE,
    SHAPE,
    SPRITE,
    Colour,
    Line,
    Picture,
    Stamp,
    line_width,
)
from builtin.world.shapes import COLOURS, SHAPES, SIGN_COLOURS
from builtin.world.splits import split_of_string
from builtin.world.wide import cap_height, foreign_stamp, ground_stamp, place_of, plate_stamp, reach_of, wear
from builtin.world.wordings import pick_wording

_LENGTHS = (1, 2, 3, 3, 4, 4, 5, 5, 6, 6)  # of signs
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")


@dataclass(frozen=True)
class Item:
    """A thing in a group: a coloured shape or a named drawing, and its place."""

    name: str
    place: str
    colour: str = ""
    shape: str = ""


@dataclass
class Frame:
    """A picture and what is true of it. `sort` is sign, thing, digit, flag, group or foreign."""

    picture: Picture
    sort: str
    name: str  # the text of a sign, the label of a thing, the figure, the country, a foreign picture's kind
    colour: str = ""  # of a sign's ground
    concept: int = -1
    country: int = -1
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Style:
    """Where a painter may take from: the split that owns the strings, faces, and how much pictures vary.

    strong: vary the colours and places of drawings as much as in training. looks: of the drawings, how many
    wear a look; above 0 the hands that exams do not draw from are drawn from too. wide: share of the
    pictures that are shown as people show them (small, on plates, before photographs, damaged, flags in
    forms); above 0 signs have up to 8 characters. own_words: share of the questions in the split's
    handwritten wordings.
    """

    split: str
    faces: tuple[int, ...]
    figure_faces: tuple[int, ...]
    concepts: tuple[int, ...]
    strong: bool = True
    looks: float = 0.0
    wide: float = 0.0
    own_words: float = 0.0

    @classmethod
    def of(
        cls,
        world: World,
        split: str,
        *,
        strong: bool = True,
        looks: float = 0.0,
        wide: float = 0.0,
        own_words: float = 0.0,
    ) -> "Style":
        """All that a world has."""
        faces, figures = tuple(world.letter_faces), tuple(world.figure_faces)
        return cls(split, faces, figures, tuple(world.known_concepts), strong, looks, wide, own_words)


class Painter:
    """Draws frames of a world with one random source."""

    def __init__(self, world: World, style: Style, rng: Random):
        self.world, self.style, self.rng = world, style, rng

    def ask(self, task: str, templates: tuple[str, ...], *words: str) -> str:
        """One of the wordings of a question."""
        style = self.style
        return pick_wording(self.rng, task, templates, style.split, style.own_words).format(*words)

    @property
    def is_wide(self) -> bool:
        """Whether the next picture is to be shown as people show them; drawn anew at each call."""
        return self.style.wide > 0 and self.rng.random() < self.style.wide

    # ------ grounds and colours

    def near(self, name: str, spread: float = 16.0) -> Colour:
        """A colour that goes by this name."""
        red, green, blue = COLOURS[name]
        shift = self.rng.uniform(-spread, spread)
        return tuple(min(255.0, max(0.0, c + shift + self.rng.uniform(-6, 6))) for c in (red, green, blue))  # type: ignore[return-value]

    def any_colour(self) -> Colour:
        """Any colour at all."""
        return (self.rng.uniform(0, 255), self.rng.uniform(0, 255), self.rng.uniform(0, 255))

    def _on(self, first: Colour, second: Colour | None = None, stripes: float = 0.0) -> Picture:
        """An empty picture on a ground of one or two colours, sometimes noisy and soft."""
        rng = self.rng
        noisy = self.style.strong and rng.random() < 0.4
        return Picture(
            (first, second or first),
            direction=rng.uniform(0, 2 * math.pi),
            stripes=stripes,
            noise=rng.uniform(1, 14) if noisy else 0.0,
            blur=rng.uniform(0, 0.8) if noisy else 0.0,
        )

    def _open_ground(self) -> Picture:
        """A ground for things: light or any colour, plain, a gradient or stripes."""
        rng = self.rng
        first = (
            self.any_colour() if rng.random() < 0.5 else self.near(rng.choice(("white", "gray", "black")), 10)
        )
        choice = rng.random()
        second = first if choice < 0.6 else self.any_colour()
        stripes = rng.uniform(8, 50) if choice > 0.85 else 0.0
        picture = self._on(first, second, stripes)
        picture.damage = wear(rng, self.style.wide / 2)
        if self.style.wide > 0 and rng.random() < self.style.wide / 3:
            picture.stamps += filter(None, [ground_stamp(rng, self.world)])
        return picture

    # ------ signs

    def string(self, length: int | None = None, alphabet: str = CHARACTERS) -> str:
        """A string of capitals and figures that this split owns; of 1 to 6 characters, in a wide style 8."""
        rng = self.rng
        while True:
            size = length or rng.choice(_LENGTHS if self.style.wide == 0 else (*_LENGTHS, 7, 7, 8, 8))
            text = "".join(rng.choices(alphabet, k=size))
            if split_of_string(text) == self.style.split:
                return text

    def sign(self, text: str | None = None, colour: str | None = None) -> Frame:
        """Text on a ground of one named colour."""
        rng = self.rng
        figures = bool(self.style.figure_faces) and text is None and rng.random() < 0.06
        text = text or self.string(alphabet=FIGURES if figures else CHARACTERS)
        colour = colour or rng.choice(SIGN_COLOURS)
        faces = self.style.figure_faces if figures else self.style.faces
        if self.is_wide:
            return self.small_sign(text, colour, rng.choice(faces))
        ground = self.near(colour)
        picture, face = self._on(ground), rng.choice(faces)
        picture.damage = wear(rng, self.style.wide / 3, most=0.3 if len(text) > 4 else 0.7)
        picture.lines.append(self._line(text, face, self._ink(ground)))
        return Frame(picture, "sign", text, colour=colour)

    def small_sign(self, text: str, colour: str, face: int) -> Frame:
        """The same at any place and size, on the whole ground or on a plate of that colour."""
        rng, ground = self.rng, self.near(colour)
        spacing = rng.choice((0.0, 0.0, rng.uniform(0, 0.2)))
        turn = rng.uniform(-0.15, 0.15) if rng.random() < 0.3 else 0.0
        width = line_width(text, self.world.faces[face].widths, spacing)
        cap = cap_height(rng, width)
        half = reach_of(width, cap, turn)
        x, y = place_of(rng, half)
        on_plate = rng.random() < 0.6
        picture = self._open_ground() if on_plate else self._on(ground)
        picture.damage = wear(rng, 0.3, most=0.2 if cap < 14 else 0.7)
        if on_plate:
            picture.stamps.append(plate_stamp(rng, x, y, half, ground))
        picture.lines.append(Line(face, text, x, y, cap, self._ink(ground), turn, 0.0, spacing))
        return Frame(picture, "sign", text, colour=colour)

    def _ink(self, ground: Colour) -> Colour:
        """A colour that stands out from the ground: black, white, or any other far enough in lightness."""
        rng, light = self.rng, lightness(ground)
        if rng.random() < 0.75:
            return self.near("black" if light > 128 else "white", 12)
        while True:
            ink = self.any_colour()
            if abs(lightness(ink) - light) > 95:
                return ink

    def _line(self, text: str, face: int, ink: Colour) -> Line:
        rng = self.rng
        spacing = rng.choice((0.0, 0.0, rng.uniform(0, 0.2)))
        width = line_width(text, self.world.faces[face].widths, spacing)
        turn = rng.uniform(-0.12, 0.12) if rng.random() < 0.3 else 0.0
        most = min(34.0, 104 / (width + 0.3))
        cap = rng.uniform(max(12.0, 0.6 * most), most) if most > 12 else most
        half = (width + 0.3) * cap / 2
        x = FRAME_SIZE / 2 + rng.uniform(-1, 1) * max(0.0, FRAME_SIZE / 2 - 2 - half)
        tall = cap * 0.75 + half * abs(math.sin(turn))
        y = FRAME_SIZE / 2 + rng.uniform(-1, 1) * max(0.0, FRAME_SIZE / 2 - 2 - tall)
        slant = rng.uniform(-0.1, 0.25) if self.style.strong and rng.random() < 0.2 else 0.0
        return Line(face, text, x, y, cap, ink, turn, slant, spacing)

    # ------ things, figures, flags

    def thing(self, concept: int | None = None) -> Frame:
        """One named drawing on any ground."""
        rng = self.rng
        concept = rng.choice(self.style.concepts) if concept is None else concept
        picture = self._open_ground()
        size = rng.uniform(38, 112) if self.is_wide else rng.uniform(56, 108)
        room = max(0.0, FRAME_SIZE / 2 - size * 0.46)
        x, y = (FRAME_SIZE / 2 + rng.uniform(-room, room) for _ in range(2))
        picture.stamps.append(self.stamp(concept, x, y, size, picture.ground))
        return Frame(picture, "thing", self.world.concepts[concept].label, concept=concept)

    def stamp(self, concept: int, x: float, y: float, size: float, ground: tuple[Colour, Colour]) -> Stamp:
        """A drawing of a concept on a ground, varied as far as its name allows."""
        rng, named, world = self.rng, self.world.concepts[concept], self.world
        with_looks = self.style.strong and self.style.looks > 0
        index = rng.choice((world.sprites_of if with_looks else world.exam_sprites_of)[concept])
        if not self.style.strong:
            return Stamp(SPRITE, index, x, y, size)
        hue = rng.gauss(0, 0.5 if named.recolourable else 0.08)
        grey = named.recolourable and rng.random() < 0.1
        saturation = 0.1 if grey else rng.uniform(0.5, 1.4)
        change = (hue, saturation, rng.uniform(0.6, 1.25), rng.uniform(-30, 30))
        angle = rng.gauss(0, 0.16 if named.turnable else 0.04)
        mirrored = named.turnable and rng.random() < 0.3
        stamp = Stamp(SPRITE, index, x, y, size, angle, rng.uniform(0.82, 1.2), mirrored, change=change)
        return self._with_look(stamp, named.recolourable, ground) if with_looks else stamp

    def _with_look(self, stamp: Stamp, recolourable: bool, ground: tuple[Colour, Colour]) -> Stamp:
        """The drawing in a look, or as it is; one of a single colour always takes one from its look."""
        rng, one_colour = self.rng, self.world.is_one_colour(stamp.index)
        if rng.random() > self.style.looks and not one_colour:
            return stamp
        look = draw_look(rng, ground, recolourable=recolourable, one_colour=one_colour)
        change = stamp.change
        if recolourable and rng.random() < 0.4:
            change = (rng.uniform(-math.pi, math.pi), *change[1:])
        return replace(stamp, look=look, change=change)

    def digit(self, index: int | None = None) -> Frame:
        """One handwritten figure, in any ink on any ground that it stands out from."""
        rng = self.rng
        index = rng.randrange(len(self.world.digit_labels)) if index is None else index
        ground = self.near("black", 15) if rng.random() < 0.5 else self.any_colour()
        picture = self._on(ground)
        size = rng.uniform(56, 112)
        room = max(0.0, FRAME_SIZE / 2 - size * 0.42)
        x, y = (FRAME_SIZE / 2 + rng.uniform(-room, room) for _ in range(2))
        angle, stretch = (rng.gauss(0, 0.12), rng.uniform(0.8, 1.2)) if self.style.strong else (0.0, 1.0)
        ink = self._ink(ground)
        picture.stamps.append(Stamp(DIGIT, index, x, y, size, angle, stretch, colour=ink))
        return Frame(picture, "digit", str(self.world.digit_labels[index]))

    def flag(self, outline: str | None = None) -> Frame:
        """One country's flag: a plain rectangle; in a form in a wide style, or where an outline is given."""
        rng, form = self.rng, None
        index = rng.randrange(len(self.world.flag_countries))
        picture = self._open_ground()
        size = rng.uniform(70, 112)
        if outline is not None or self.is_wide:
            form = draw_form(rng, self.style.split, outline)
        x, y = (FRAME_SIZE / 2 + rng.uniform(-6, 6) for _ in range(2))
        change = (rng.gauss(0, 0.05), rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.1), rng.uniform(-15, 15))
        stamp = Stamp(FLAG, index, x, y, size, rng.gauss(0, 0.05), change=change, form=form)
        picture.stamps.append(stamp)
        country = self.world.flag_countries[index]
        return Frame(picture, "flag", self.world.countries[country].name, country=country)

    def foreign(self, index: int | None = None) -> Frame:
        """A picture that is none of this world, whose `name` is its kind."""
        rng, world = self.rng, self.world
        if index is None:
            index = rng.randrange(len(world.foreign_kinds))
        if self.style.strong and rng.random() < 0.04:
            return self._noise()
        picture = self._on(self.any_colour())
        picture.stamps.append(foreign_stamp(rng, index, plain=not self.style.strong))
        picture.damage = wear(rng, 0.3 if self.style.strong else 0.0)
        return Frame(picture, "foreign", KINDS[world.foreign_kinds[index]])

    def _noise(self) -> Frame:
        """Nothing but noise."""
        rng, first = self.rng, self.any_colour()
        second = rng.choice((first, self.any_colour()))
        picture = Picture(
            (first, second), direction=rng.uniform(0, 6.3), noise=rng.uniform(25, 120), blur=rng.random()
        )
        picture.damage = wear(rng, 0.5)
        return Frame(picture, "foreign", "pattern")

    # ------ groups on a grid of 3 x 3

    def group(self, names: list[tuple[str, str] | int]) -> Frame:
        """Up to nine things at places of their own; each is (colour, shape) or the number of a concept."""
        rng = self.rng
        picture = self._calm_ground(names)
        items = []
        for name, cell in zip(names, rng.sample(range(9), len(names)), strict=True):
            x, y = (19 + 37 * axis + rng.uniform(-3, 3) for axis in (cell % 3, cell // 3))
            size = rng.uniform(25, 33)
            if isinstance(name, int):
                label = self.world.concepts[name].label
                picture.stamps.append(self.stamp(name, x, y, size, picture.ground))
                items.append(Item(label, PLACES[cell]))
            else:
                colour, shape = name
                turn = rng.uniform(-0.1, 0.1)
                stamp = Stamp(SHAPE, SHAPES.index(shape), x, y, size, turn, colour=self.near(colour, 12))
                picture.stamps.append(stamp)
                items.append(Item(f"{colour} {shape}", PLACES[cell], colour, shape))
        picture.damage = wear(rng, self.style.wide / 3, most=0.3)
        return Frame(picture, "group", "", items=tuple(items))

    def _calm_ground(self, names: list[tuple[str, str] | int]) -> Picture:
        """A plain ground in a colour that none of the shapes has."""
        taken = {name[0] for name in names if not isinstance(name, int)}
        free = [name for name in ("white", "black", "gray", "yellow", "blue", "pink") if name not in taken]
        weights = [6 if name == "white" else 2 if name in ("black", "gray") else 1 for name in free]
        ground = self.near(self.rng.choices(free, weights)[0], 8)
        return self._on(ground)
