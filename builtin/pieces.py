"""What a school has finished as a few files of limited size, and back.

python -m builtin.pieces --take FOLDER_OF_PIECES --folder runs/builtin
"""

import argparse
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from builtin.command import command
from builtin.sources import unpack
from infinitevl.errors import InputError

PIECE = 15_000_000  # bytes
NAME = "school-{:02d}.part"
_SMALL = 2_000_000  # bytes of logs, figures and scores, which are always taken


def keep(
    folder: Path, out: Path, models: Sequence[str], extra: Mapping[str, Path] | None = None
) -> list[Path]:
    """Write small files of `folder`, and the folders or files `models` in it, as pieces into `out`.

    extra: other files, by the place in `folder` where they are put back.
    Returns: the pieces.
    """
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            is_wanted = name in models or name.startswith(tuple(f"{m}/" for m in models))
            if path.is_file() and (_is_small(path, folder) or is_wanted):
                archive.add(path, arcname=name)
        for name, path in (extra or {}).items():
            archive.add(path, arcname=name)
    whole, pieces = memory.getvalue(), []
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(NAME.format(0).replace("00", "*")):
        old.unlink()
    for number, start in enumerate(range(0, len(whole), PIECE)):
        pieces.append(out / NAME.format(number))
        pieces[-1].write_bytes(whole[start : start + PIECE])
    return pieces


def take(pieces: Path, folder: Path) -> None:
    """Put back into `folder` what `keep` wrote into `pieces`; InputError if nothing is there."""
    found = sorted(pieces.glob(NAME.format(0).replace("00", "*")))
    if not found:
        raise InputError(f"{pieces} holds no pieces; `python -m builtin.school --keep FOLDER` writes them.")
    whole = b"".join(piece.read_bytes() for piece in found)
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:gz") as archive:
        unpack(archive, folder)


def _is_small(path: Path, folder: Path) -> bool:
    """Scores, plans, marks, logs and figures, but nothing of a model's folder."""
    parts = path.relative_to(folder).parts
    is_kind = path.suffix in {".json", ".jsonl", ".png"}
    return is_kind and not {"model", "adapter", "student"} & set(parts) and path.stat().st_size < _SMALL


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Put the pieces of a school back into its folder.")
    parser.add_argument("--take", type=Path, required=True, help="folder of the pieces")
    parser.add_argument("--folder", type=Path, default=Path("runs/builtin"))
    arguments = parser.parse_args()
    take(arguments.take, arguments.folder)


if __name__ == "__main__":
    main()
