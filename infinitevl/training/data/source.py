"""Reads rows by number from JSON lines, a JSON list, or a dataset, without loading all of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infinitevl.errors import InputError
from infinitevl.training.data.messages import Sample, read_messages
from infinitevl.training.data.sharegpt import ShareGPT

Convert = Callable[[dict[str, Any]], dict[str, Any]]
FORMATS: dict[str, Convert] = {"messages": lambda row: row, "sharegpt": ShareGPT()}


class Rows(Protocol):
    """Rows by number, as a list, `JsonLines` and a dataset have them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Samples:
    """Samples of one file or dataset, by number.

    convert: brings a row into the form that `read_messages` reads. root: folder that relative paths start at.
    """

    name: str
    rows: Rows
    convert: Convert
    root: Path
    unit: str = "row"

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        """Names a row for people; numbers start at 1."""
        return f"{self.name}, {self.unit} {index + 1}"

    def __getitem__(self, index: int) -> Sample:
        """Reads a sample. Raises InputError that names file, line and field, whatever is wrong with it."""
        try:
            row = self.rows[index]
            if not isinstance(row, dict):
                raise InputError(f"field row: is {type(row).__name__}; give an object.")
            messages = read_messages(self.convert(row), self.root)
        except (OSError, SyntaxError, ValueError) as error:  # a dataset decodes pictures when a row is read
            raise InputError(f"{self.where(index)}, {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # of a caller's own function, or of a library that decodes a row
            raise InputError(f"{self.where(index)}, {type(error).__name__}: {error}") from error
        return Sample(messages, self.where(index))


class JsonLines:
    """The objects of a file of JSON lines, by number; empty lines count and are refused."""

    def __init__(self, path: Path):
        self.path = path
        self.starts = _line_starts(path)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Any:
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            line = file.read(self.starts[index + 1] - self.starts[index])
        try:
            return json.loads(line)
        except ValueError as error:
            raise InputError(f"field row: is no JSON: {error}. Give one object on each line.") from error


def _line_starts(path: Path) -> np.ndarray:
    """Returns where each line starts, and where the last one ends: int64 [lines + 1]."""
    with path.open("rb") as file:
        lengths = np.fromiter((len(line) for line in file), dtype=np.int64)
    return np.concatenate([np.zeros(1, dtype=np.int64), lengths.cumsum()])


def open_samples(path: str | Path, form: str | Convert = "messages") -> Samples:
    """Opens a .jsonl or .json file, or a folder that `datasets` wrote with save_to_disk.

    form: "messages", "sharegpt", or a function that brings a row into the form of messages.
    """
    if isinstance(form, str) and form not in FORMATS:
        raise InputError(f"The form of a data file is {form!r}; valid are {', '.join(FORMATS)}.")
    convert = FORMATS[form] if isinstance(form, str) else form
    file = Path(path)
    if not file.exists():
        raise InputError(f"{file} does not exist. Give a .jsonl or .json file, or a saved dataset.")
    if file.is_dir():
        return Samples(str(file), _saved_dataset(file), convert, file)
    rows: Rows = JsonLines(file) if file.suffix != ".json" else _json_list(file)
    return Samples(str(file), rows, convert, file.parent, "line" if file.suffix != ".json" else "entry")


def _saved_dataset(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no saved dataset: {error}") from error


def _json_list(file: Path) -> Sequence[Any]:
    try:
        rows = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}.") from error
    if not isinstance(rows, list):
        raise InputError(f"{file} holds {type(rows).__name__}; give a list of objects, or JSON lines.")
    return rows
