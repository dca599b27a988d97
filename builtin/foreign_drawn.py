"""Draw pages of text, screenshots, plots and patterns as foreign pictures; splits have sorts of their own."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from builtin.sources import TEST_FONTS, VALIDATION_FONTS, fetch_fonts
from builtin.world.splits import TEST, TRAIN, VALIDATION, rng_of
from builtin.world.wordings import handwritten

SIDE = 320  # pixels; drawn twice as large as it is kept
_FONTS = {
    TRAIN: (
        "fonts-liberation2",
        "fonts-dejavu-core",
        "fonts-open-sans",
        "fonts-ebgaramond",
        "fonts-firacode",
    ),
    VALIDATION: VALIDATION_FONTS,
    TEST: TEST_FONTS,
}
_SEED = 21
Fonts = list[Path]
Box = tuple[int, int, int, int]


def draw_pictures(split: str, cache: Path) -> Iterator[tuple[str, Image.Image]]:
    """(kind, picture) of everything that is drawn for a split."""
    rng = rng_of(split, _SEED)
    fonts = [path for name in _FONTS[split] for path in fetch_fonts(name, cache) if _is_plain(path)]
    words = [word for lines in handwritten()[split].values() for line in lines for word in line.split()]
    hand = _Hand(rng, fonts, words)
    for kind, draw, count in SORTS[split]:
        for _ in range(count):
            yield kind, draw(hand)


def _is_plain(path: Path) -> bool:
    return not any(word in path.stem for word in ("Italic", "Oblique", "Condensed", "[", "Math", "DSEG"))


class _Hand:
    """A random source with fonts and words."""

    def __init__(self, rng: Random, fonts: Fonts, words: list[str]):
        self.rng, self.fonts, self.words = rng, fonts, words

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(str(self.rng.choice(self.fonts)), size)

    def text(self, count: int) -> str:
        return " ".join(self.rng.choices(self.words, k=count))

    def colour(self, low: int = 0, high: int = 255) -> tuple[int, int, int]:
        rng = self.rng
        return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)

    def ink_and_paper(self, dark: float = 0.3) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        light, deep = self.colour(225, 255), self.colour(0, 60)
        return (light, deep) if self.rng.random() < dark else (deep, light)


# ------ pages of text


def _page(hand: _Hand) -> Image.Image:
    """Lines of text in one or two columns, with a title, sometimes aslant and yellowed."""
    rng = hand.rng
    ink, paper = hand.ink_and_paper(dark=0.05)
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    draw, size = ImageDraw.Draw(picture), rng.choice((8, 10, 12, 14, 18, 22))
    top = rng.randint(6, 40)
    if rng.random() < 0.6:
        draw.text((rng.randint(10, 60), top), hand.text(3), ink, hand.font(int(size * 1.7)))
        top += int(2.6 * size)
    columns = rng.choice((1, 1, 2))
    font = hand.font(size)
    for column in range(columns):
        left = 14 + column * SIDE // columns
        _fill(draw, hand, (left, top, left + SIDE // columns - 22, SIDE - rng.randint(4, 60)), font, ink)
    return _scanned(picture, rng, paper)


def _fill(draw: ImageDraw.ImageDraw, hand: _Hand, box: Box, font: ImageFont.FreeTypeFont, ink) -> None:
    """Fill a box with lines of text and paragraphs."""
    left, top, right, bottom = box
    step = int(font.size * hand.rng.uniform(1.15, 1.7))
    while top < bottom:
        line = hand.text(1)
        while font.getlength(line) < right - left - 2 * font.size:
            line += " " + hand.text(1)
            if hand.rng.random() < 0.03:
                break
        draw.text((left, top), line, ink, font)
        top += step * (2 if hand.rng.random() < 0.1 else 1)


def _scanned(picture: Image.Image, rng: Random, paper) -> Image.Image:
    if rng.random() < 0.4:
        picture = picture.rotate(rng.gauss(0, 3), Image.Resampling.BICUBIC, fillcolor=paper)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return picture


def _table_page(hand: _Hand) -> Image.Image:
    """A page that is one table of words and numbers."""
    rng = hand.rng
    ink, paper = hand.ink_and_paper(dark=0.05)
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    draw, font = ImageDraw.Draw(picture), hand.font(rng.choice((10, 12, 15)))
    columns, step = rng.randint(3, 5), rng.randint(17, 26)
    for row, top in enumerate(range(8, SIDE - 10, step)):
        draw.line((6, top - 3, SIDE - 6, top - 3), ink)
        for column in range(columns):
            text = hand.text(1) if row == 0 or column == 0 else f"{rng.uniform(0, 999):.1f}"
            draw.text((10 + column * SIDE // columns, top), text, ink, font)
    return _scanned(picture, rng, paper)


# ------ screenshots


def _terminal(hand: _Hand) -> Image.Image:
    """Lines of commands on a dark ground, in a few colours."""
    rng = hand.rng
    picture = Image.new("RGB", (SIDE, SIDE), hand.colour(0, 45))
    draw, size = ImageDraw.Draw(picture), rng.choice((10, 12, 14, 18))
    font, inks = hand.font(size), [hand.colour(120, 255) for _ in range(4)]
    for top in range(5, SIDE - size, int(size * 1.3)):
        left = rng.choice((5, 5, 5 + 2 * size, 5 + 4 * size))
        for _ in range(rng.randint(0, 5)):
            text = rng.choice(
                (hand.text(1), f"--{hand.text(1)}", f"{rng.randint(0, 99999)}", "$", "{ }", "=>")
            )
            draw.text((left, top), text, rng.choice(inks), font)
            left += int(font.getlength(text)) + size
    return picture


def _window(hand: _Hand) -> Image.Image:
    """A window with a bar, a list at the side, buttons, fields and text."""
    rng = hand.rng
    ink, paper = hand.ink_and_paper()
    picture = Image.new("RGB", (SIDE, SIDE), hand.colour())
    draw, font = ImageDraw.Draw(picture), hand.font(rng.choice((9, 11, 13, 16)))
    left, top = rng.choice((0, rng.randint(0, 40))), rng.choice((0, rng.randint(0, 40)))
    right, bottom = SIDE - rng.choice((0, rng.randint(0, 40))), SIDE - rng.choice((0, rng.randint(0, 40)))
    draw.rectangle((left, top, right, bottom), paper)
    bar = hand.colour(40, 230)
    draw.rectangle((left, top, right, top + 24), bar)
    for number in range(3):
        draw.ellipse((right - 20 * number - 18, top + 6, right - 20 * number - 6, top + 18), hand.colour())
    draw.text((left + 8, top + 5), hand.text(2), ink, font)
    side = left + rng.choice((0, 70, 100))
    if side > left:
        draw.rectangle((left, top + 24, side, bottom), hand.colour(60, 240))
        for row in range(top + 32, bottom - 12, 20):
            draw.text((left + 6, row), hand.text(1), ink, font)
    _widgets(draw, hand, (side + 10, top + 34, right - 10, bottom - 8), font, ink)
    return picture


def _widgets(draw: ImageDraw.ImageDraw, hand: _Hand, box: Box, font: ImageFont.FreeTypeFont, ink) -> None:
    rng, (left, top, right, bottom) = hand.rng, box
    while top < bottom - 30:
        sort, tall = rng.random(), rng.randint(18, 34)
        if sort < 0.3:
            draw.rounded_rectangle(
                (left, top, left + rng.randint(50, 110), top + tall), 5, hand.colour(60, 240)
            )
            draw.text((left + 8, top + 4), hand.text(1), ink, font)
        elif sort < 0.5:
            draw.rectangle((left, top, right, top + tall), None, ink)
            draw.text((left + 6, top + 4), hand.text(2), ink, font)
        elif sort < 0.62:
            draw.rectangle((left, top, left + 13, top + 13), None, ink)
            draw.text((left + 22, top), hand.text(3), ink, font)
        elif sort < 0.74 and right - left > 60:
            tall = min(80, bottom - top)
            draw.rectangle((left, top, left + rng.randint(50, right - left), top + tall), hand.colour())
        else:
            draw.text((left, top), hand.text(rng.randint(2, 7)), ink, font)
        top += tall + 8


def _sheet(hand: _Hand) -> Image.Image:
    """A table of cells with a bar of tools above."""
    rng = hand.rng
    ink, paper = hand.ink_and_paper()
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    draw, font = ImageDraw.Draw(picture), hand.font(11)
    draw.rectangle((0, 0, SIDE, 40), hand.colour(90, 230))
    for left in range(6, SIDE, 30):
        draw.rectangle((left, 8, left + 20, 28), hand.colour())
    wide, tall = rng.randint(44, 80), rng.randint(16, 24)
    for top in range(40, SIDE, tall):
        draw.line((0, top, SIDE, top), (150, 150, 150))
        for left in range(0, SIDE, wide):
            draw.line((left, 40, left, SIDE), (150, 150, 150))
            if rng.random() < 0.6:
                draw.text(
                    (left + 4, top + 2), rng.choice((hand.text(1), str(rng.randint(0, 9999)))), ink, font
                )
    return picture


def _messages(hand: _Hand) -> Image.Image:
    """Bubbles of a conversation on a phone."""
    rng = hand.rng
    ink, paper = hand.ink_and_paper()
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    draw, font, top = ImageDraw.Draw(picture), hand.font(13), rng.randint(4, 30)
    colours = hand.colour(120, 240), hand.colour(120, 240)
    while top < SIDE - 30:
        mine, tall = rng.randrange(2), rng.choice((26, 44))
        wide = rng.randint(90, 210)
        left = SIDE - wide - 10 if mine else 10
        draw.rounded_rectangle((left, top, left + wide, top + tall), 12, colours[mine])
        for line in range(tall // 18):
            draw.text((left + 10, top + 5 + 18 * line), hand.text(wide // 50), ink, font)
        top += tall + 10
    return picture


# ------ plots


def _plot(sorts: tuple[str, ...]) -> Callable[[_Hand], Image.Image]:
    def draw(hand: _Hand) -> Image.Image:
        from matplotlib import pyplot

        numbers = np.random.default_rng(hand.rng.getrandbits(32))
        style = hand.rng.choice(("default", "dark_background", "ggplot", "bmh", "seaborn-v0_8", "classic"))
        with pyplot.style.context(style):
            figure, axes = pyplot.subplots(figsize=(SIDE / 80, SIDE / 80), dpi=80)
            _curves(axes, hand.rng.choice(sorts), numbers)
            if hand.rng.random() < 0.6:
                axes.set_title(hand.text(2))
            if hand.rng.random() < 0.6:
                axes.set_xlabel(hand.text(1))
                axes.set_ylabel(hand.text(1))
            axes.grid(hand.rng.random() < 0.3)
            memory = io.BytesIO()
            figure.savefig(memory, format="png")
            pyplot.close(figure)
        return Image.open(memory).convert("RGB")

    return draw


def _curves(axes, sort: str, numbers: np.random.Generator) -> None:
    count = int(numbers.integers(3, 9))
    if sort == "line":
        axes.plot(numbers.normal(size=(40, count)).cumsum(0))
    elif sort == "scatter":
        axes.scatter(*numbers.normal(size=(2, 60)), c=numbers.random(60), s=numbers.uniform(5, 80, 60))
    elif sort == "bar":
        axes.bar(range(count), numbers.random(count), color=numbers.random((count, 3)))
    elif sort == "hist":
        axes.hist(numbers.normal(size=(200, 2)), bins=12)
    elif sort == "pie":
        axes.pie(numbers.random(count), labels=[f"{n}" for n in range(count)])
    elif sort == "heat":
        axes.imshow(
            numbers.random((count, count)), cmap=str(numbers.choice(["viridis", "hot", "Blues", "gray"]))
        )
    elif sort == "box":
        axes.boxplot(numbers.normal(size=(30, count)))
    elif sort == "stairs":
        axes.step(range(20), numbers.random(20))
    elif sort == "stack":
        axes.stackplot(range(12), numbers.random((count, 12)))


# ------ patterns


def _cloudy(hand: _Hand) -> Image.Image:
    """Noise of several sizes in two or three colours: clouds, grain, marble."""
    numbers = np.random.default_rng(hand.rng.getrandbits(32))
    field = np.zeros((SIDE, SIDE))
    finest = hand.rng.randint(2, 7)
    for level in range(hand.rng.randint(0, finest - 1), finest + 1):
        coarse = Image.fromarray(numbers.random((2 ** (level + 1),) * 2).astype(np.float32))
        field += (
            np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            * hand.rng.uniform(0.5, 1) ** level
        )
    if hand.rng.random() < 0.4:
        field = np.sin(field * hand.rng.uniform(4, 25))
    return _in_colours(hand, field)


def _in_colours(hand: _Hand, field: np.ndarray) -> Image.Image:
    field = (field - field.min()) / (np.ptp(field) + 1e-9) * 2
    colours = np.array([hand.colour() for _ in range(3)], np.float64)
    low, high = np.clip(field, 0, 1)[..., None], np.clip(field - 1, 0, 1)[..., None]
    pixels = colours[0] * (1 - low) + colours[1] * (low - high) + colours[2] * high
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _waves(hand: _Hand) -> Image.Image:
    """Stripes, checks and rings that run over the whole picture."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    rng, field = hand.rng, np.zeros((SIDE, SIDE))
    for _ in range(rng.randint(2, 5)):
        turn, waves = rng.uniform(0, 6.3), rng.uniform(6, 60)
        way = (
            np.hypot(x - rng.random(), y - rng.random())
            if rng.random() < 0.3
            else x * np.cos(turn) + y * np.sin(turn)
        )
        field += np.sin(waves * way + rng.uniform(0, 6.3))
    return _in_colours(hand, np.sign(field) if rng.random() < 0.3 else field)


def _cells(hand: _Hand) -> Image.Image:
    """Cells around points, each in a colour: stones, mosaics."""
    numbers = np.random.default_rng(hand.rng.getrandbits(32))
    points = numbers.random((hand.rng.randint(25, 140), 2)) * SIDE
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    far = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    order = np.sort(far, -1)
    if hand.rng.random() < 0.5:
        return _in_colours(hand, np.sqrt(order[..., 1]) - np.sqrt(order[..., 0]))
    palette = np.array([hand.colour() for _ in range(len(points))], np.uint8)
    return Image.fromarray(palette[far.argmin(-1)])


SORTS: dict[str, tuple[tuple[str, Callable[[_Hand], Image.Image], int], ...]] = {
    TRAIN: (
        ("page of text", _page, 90),
        ("screenshot", _terminal, 40),
        ("screenshot", _window, 80),
        ("plot", _plot(("line", "scatter", "bar", "hist", "pie", "heat")), 100),
        ("pattern", _cloudy, 60),
        ("pattern", _waves, 30),
        ("pattern", _cells, 20),
    ),
    VALIDATION: (
        ("page of text", _page, 12),
        ("screenshot", _sheet, 10),
        ("screenshot", _window, 10),
        ("plot", _plot(("box", "stack")), 16),
        ("pattern", _cloudy, 10),
    ),
    TEST: (
        ("page of text", _page, 10),
        ("page of text", _table_page, 10),
        ("screenshot", _messages, 15),
        ("plot", _plot(("stairs", "box")), 15),
        ("pattern", _cells, 10),
    ),
}
