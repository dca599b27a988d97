"""A measurement as one JSON line, with everything needed to repeat it."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from infinitevl.bench.clock import Timing
from infinitevl.errors import InfiniteVLError, InputError

OURS, EAGER, GRAPHED = "infinitevl", "transformer eager", "transformer graphed"
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Place:
    """Where a run was measured: the part that all its records share."""

    size: str
    commit: str
    device: str
    versions: dict[str, str]

    @classmethod
    def here(cls, size: str, device: str | torch.device, commit: str | None = None) -> "Place":
        """This machine and this source; give `commit` if git cannot tell it."""
        return cls(size, commit or source_commit(), device_name(device), versions())


@dataclass(frozen=True)
class Record:
    """One measured value.

    benchmark: the command. what: the quantity. spread: 5th and 95th percentile, or None for a single value.
    settings: who was measured (OURS, EAGER or GRAPHED) and what was chosen, such as the context in tokens.
    """

    benchmark: str
    size: str
    what: str
    value: float
    unit: str
    spread: tuple[float, float] | None
    repeats: int
    settings: dict[str, Any]
    commit: str
    device: str
    versions: dict[str, str]
    time: str

    @property
    def who(self) -> str:
        """Who was measured."""
        return self.settings["who"]

    def line(self) -> str:
        """JSON on one line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def row(self) -> str:
        """The record as one row of a table for people."""
        rest = "  ".join(f"{name}={_short(value)}" for name, value in self.settings.items() if name != "who")
        value = f"{_short(self.value)} {self.unit}"
        spread = "" if self.spread is None else f"[{_short(self.spread[0])} .. {_short(self.spread[1])}]"
        return f"{self.who:<20} {self.what:<18} {value:>16} {spread:<22} {rest}".rstrip()


def timed(place: Place, benchmark: str, what: str, timing: Timing, *, who: str, **settings: Any) -> Record:
    """Make the record of a time in milliseconds."""
    spread = (round(timing.low, 5), round(timing.high, 5))
    return _record(
        place, benchmark, what, round(timing.median, 5), "ms", spread, timing.repeats, who, settings
    )


def counted(
    place: Place, benchmark: str, what: str, value: float, unit: str, *, who: str, **settings: Any
) -> Record:
    """Make the record of a value without spread, such as bytes."""
    return _record(place, benchmark, what, value, unit, None, 1, who, settings)


def _record(
    place: Place,
    benchmark: str,
    what: str,
    value: float,
    unit: str,
    spread: tuple[float, float] | None,
    repeats: int,
    who: str,
    settings: dict[str, Any],
) -> Record:
    return Record(
        benchmark=benchmark,
        what=what,
        value=value,
        unit=unit,
        spread=spread,
        repeats=repeats,
        settings={"who": who, **settings},
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        **asdict(place),
    )


def append(record: Record, path: str | os.PathLike[str]) -> None:
    """Append the record to a file in one write, so that parallel runs keep their lines whole.

    Raises:
        InfiniteVLError: the file cannot be written.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, (record.line() + "\n").encode())
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise InfiniteVLError(
            f"could not add a measurement to {path}: {error.strerror}. Choose another --out."
        ) from error


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Read the records of a file; skip lines of other kinds, such as scores.

    Raises:
        InputError: no such file, or a line that is no JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"could not read {path}: {error.strerror}. Give a file that `bench --out` wrote."
        ) from error
    return list(_parse(text, path))


def _parse(text: str, path: str | os.PathLike[str]) -> Iterator[Record]:
    names = {field.name for field in fields(Record)}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"line {number} of {path} is no JSON: {error}. Take the line out.") from error
        if isinstance(given, dict) and given.keys() == names:
            spread = given.pop("spread")
            yield Record(**given, spread=None if spread is None else tuple(spread))


def source_commit() -> str:
    """The commit of this source, with a plus if files have changed; without git, the package's version."""
    tracked = _git("ls-files", "--error-unmatch", "errors.py") is not None
    commit = _git("rev-parse", "--short=10", "HEAD") if tracked else None
    if commit is None:
        return f"version {importlib.metadata.version('infinitevl')}"
    return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no", ".") else "")


def _git(*words: str) -> str | None:
    """What git prints about the package's folder; None without git or outside a repository."""
    try:
        finished = subprocess.run(["git", *words], cwd=PACKAGE, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None


def device_name(device: str | torch.device) -> str:
    """The name of the GPU, or of the processor with its threads."""
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{where.type} {platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of everything a measurement depends on; "none" for what is not installed."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "cuda": torch.version.cuda or "none",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _short(value: Any) -> str:
    """Format a number for people: four significant digits, thousands separated."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
