"""Reads conversations as chat messages with typed content, media by path or in memory.

A row is {"messages": [{"role": ..., "content": ...}, ...]}. Content is text or a list of parts:
{"type": "text", "text": ...}, {"type": "image", "image": ...}, {"type": "video", "video": ...} and
{"type": "document", "document": ...}. A part that names no file takes the next of the row's "images" or
"videos". Paths are relative to the file that holds the row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinitevl.errors import InputError
from infinitevl.training.data.media import document_pages, find_media

ROLES = ("system", "user", "assistant", "tool")
KINDS = ("text", "image", "video", "document")
_SETTINGS = (
    *("min_pixels", "max_pixels", "resized_height", "resized_width", "fps", "nframes", "min_frames"),
    *("max_frames", "total_pixels", "video_start", "video_end", "sample_fps"),
)


@dataclass(frozen=True)
class Sample:
    """One conversation. `messages`: role and a list of text, image and video parts each. `where`: its place,
    for people."""

    messages: list[dict[str, Any]]
    where: str


def read_messages(row: Any, root: Path) -> list[dict[str, Any]]:
    """Checks the messages of a row, finds every medium, and replaces documents by their pages.

    Raises InputError that names the field.
    """
    messages = field(row, "messages", list, "")
    if not messages:
        raise InputError("field messages: is empty. Give at least one question and one answer.")
    spare = {kind: iter(row.get(f"{kind}s") or []) for kind in ("image", "video")}
    read = [_message(message, f"messages[{i}]", root, spare) for i, message in enumerate(messages)]
    for kind, left in spare.items():
        if unused := len(list(left)):
            raise InputError(
                f"field {kind}s: {unused} of them have no place. Give a part of type {kind!r} for each."
            )
    _check_turns(read)
    return read


def field(row: Any, name: str, kind: type, path: str) -> Any:
    """Returns row[name] if it is of type `kind`; `path` stands before the name in an error."""
    if not isinstance(row, dict):
        raise InputError(f"field {path.rstrip('.') or 'row'}: is {type(row).__name__}; give an object.")
    if row.get(name) is None:
        raise InputError(f"field {path}{name}: is missing; the row has {sorted(row)}.")
    if not isinstance(row[name], kind):
        raise InputError(f"field {path}{name}: is {type(row[name]).__name__}; give {kind.__name__}.")
    return row[name]


def _message(message: Any, path: str, root: Path, spare: dict[str, Iterator[Any]]) -> dict[str, Any]:
    role = field(message, "role", str, f"{path}.")
    if role not in ROLES:
        raise InputError(f"field {path}.role: is {role!r}; valid are {', '.join(ROLES)}.")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": role, "content": [{"type": "text", "text": content}]}
    parts = field(message, "content", list, f"{path}.")
    read = [_parts(part, f"{path}.content[{i}]", root, spare) for i, part in enumerate(parts)]
    return {"role": role, "content": [part for found in read for part in found]}


def _parts(part: Any, path: str, root: Path, spare: dict[str, Iterator[Any]]) -> list[dict[str, Any]]:
    """Reads one part; a document becomes a picture for each page."""
    kind = field(part, "type", str, f"{path}.")
    if kind not in KINDS:
        raise InputError(f"field {path}.type: is {kind!r}; valid are {', '.join(KINDS)}.")
    if kind == "text":
        return [{"type": "text", "text": field(part, "text", str, f"{path}.")}]
    source = part.get(kind)
    if source is None:
        source = next(spare["image" if kind == "document" else kind], None)
    if source is None:
        raise InputError(f"field {path}.{kind}: is missing. Give a path there, or one more in {kind}s.")
    settings = {key: part[key] for key in _SETTINGS if part.get(key) is not None}
    found = find_media(source, root, f"{path}.{kind}")
    if kind != "document":
        return [{"type": kind, kind: found, **settings}]
    pages = document_pages(found, f"{path}.document")
    return [{"type": "image", "image": page, **settings} for page in pages]


def _check_turns(messages: list[dict[str, Any]]) -> None:
    for i, message in enumerate(messages):
        role, kinds = message["role"], {part["type"] for part in message["content"]}
        if role == "system" and i > 0:
            raise InputError(f"field messages[{i}].role: a system turn stands first, not here.")
        if role in ("system", "assistant") and kinds - {"text"}:
            raise InputError(f"field messages[{i}].content: a turn of the {role} holds text alone.")
        if role == "assistant" and not any(part["text"] for part in message["content"]):
            raise InputError(f"field messages[{i}].content: the answer is empty.")
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError("field messages: no message is the assistant's; there is nothing to learn.")
