"""Reads conversations as chat messages with typed content, media by path or in memory.

A row is {"messages": [{"role": ..., "content": ...}, ...]}. Content is text or a list of parts:
{"type": "text", "text": ...}, {"type": "image", "image": ...}, {"type": "video", "video": ...} and
{"type": "document", "document": ...}. A part that names no file takes the next of the row's "images" or
"videos" (or is the one "image" or "video"). Rows whose media have no parts may say <image> and <video> in the
text of their questions instead. Paths are relative to the file that holds the row.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinitevl.errors import InputError
from infinitevl.processing.prompt.media_settings import check_settings
from infinitevl.training.data.media import document_pages, find_media

ROLES = ("system", "user", "assistant", "tool")
KINDS = ("text", "image", "video", "document")
_WHOLE_SETTINGS = (
    *("min_pixels", "max_pixels", "resized_height", "resized_width", "nframes", "num_frames", "min_frames"),
    *("max_frames", "total_pixels"),
)
_SETTINGS = (*_WHOLE_SETTINGS, "fps", "video_start", "video_end", "sample_fps")
_PLACE = re.compile("(<image>|<video>)")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


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
    media = {kind: listed(row, f"{kind}s") for kind in ("image", "video")}
    if any(media.values()):
        messages = _with_parts(messages, [kind for kind, given in media.items() if given])
    spare = {kind: iter(given) for kind, given in media.items()}
    read = [_message(message, f"messages[{i}]", root, spare) for i, message in enumerate(messages)]
    for kind, left in spare.items():
        if unused := len(list(left)):
            raise InputError(
                f"field {kind}s: {unused} of them have no place. Give a part of type {kind!r} for each, or "
                f"<{kind}> in the text of a question."
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


def listed(row: dict[str, Any], column: str) -> list[Any]:
    """Lists the media of a column: none, one, or several; of `image` where there is no `images`."""
    value = row.get(column)
    if value is None:
        value = row.get(column.removesuffix("s"))
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def split_places(text: str) -> list[dict[str, Any]]:
    """Splits text at <image> and <video> into parts of a message."""
    pieces = [piece for piece in _PLACE.split(text) if piece]
    return [
        {"type": piece[1:-1]} if _PLACE.fullmatch(piece) else {"type": "text", "text": piece}
        for piece in pieces
    ]


def _with_parts(messages: list[Any], kinds: list[str]) -> list[Any]:
    """Splits questions that say <image> into parts, unless media of these kinds have parts already."""
    parts = [part for message in messages for part in _listed_content(message)]
    if any(isinstance(part, dict) and part.get("type") in (*kinds, "document") for part in parts):
        return messages
    return [_with_places(message) for message in messages]


def _with_places(message: Any) -> Any:
    if not isinstance(message, dict) or message.get("role") not in ("user", "tool"):
        return message
    content: list[Any] = []
    for part in _listed_content(message):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        content += split_places(text) if isinstance(text, str) and _PLACE.search(text) else [part]
    return {**message, "content": content or message.get("content")}


def _listed_content(message: Any) -> list[Any]:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []


def _message(message: Any, path: str, root: Path, spare: dict[str, Iterator[Any]]) -> dict[str, Any]:
    role = field(message, "role", str, f"{path}.")
    if role not in ROLES:
        raise InputError(f"field {path}.role: is {role!r}; valid are {', '.join(ROLES)}.")
    content = message.get("content")
    if isinstance(content, str):
        return {
            "role": role,
            "content": [{"type": "text", "text": _checked(content, f"{path}.content")}],
        }
    parts = field(message, "content", list, f"{path}.")
    read = [_parts(part, f"{path}.content[{i}]", root, spare) for i, part in enumerate(parts)]
    return {"role": role, "content": [part for found in read for part in found]}


def _parts(part: Any, path: str, root: Path, spare: dict[str, Iterator[Any]]) -> list[dict[str, Any]]:
    """Reads one part; a document becomes a picture for each page."""
    kind = field(part, "type", str, f"{path}.")
    if kind not in KINDS:
        raise InputError(f"field {path}.type: is {kind!r}; valid are {', '.join(KINDS)}.")
    if kind == "text":
        return [{"type": "text", "text": _checked(field(part, "text", str, f"{path}."), f"{path}.text")}]
    source = part.get(kind)
    if source is None:
        source = next(spare["image" if kind == "document" else kind], None)
    if source is None:
        raise InputError(
            f"field {path}.{kind}: is missing; the part has {sorted(map(str, part))}. Give a path there, or "
            f"one more in {kind}s."
        )
    given = {str(key): value for key, value in part.items() if value is not None}  # as in tables
    settings = {key: _setting(given, key, path) for key in _SETTINGS if key in given}
    check_settings(given, path)
    if "num_frames" in settings:  # transformers' name
        settings["nframes"] = settings.pop("num_frames")
    found = find_media(source, root, f"{path}.{kind}")
    if kind != "document":
        return [{"type": kind, kind: found, **settings}]
    pages = document_pages(found, f"{path}.document")
    return [{"type": "image", "image": page, **settings} for page in pages]


def _checked(text: str, path: str) -> str:
    """Returns the text; InputError if it has half a character (a lone surrogate)."""
    if half := _HALF_CHARACTER.search(text):
        raise InputError(
            f"field {path}: character {half.start() + 1} is {half.group()!r}, half of one (a lone "
            "surrogate). Write the text anew from its source."
        )
    return text


def _setting(part: dict[str, Any], key: str, path: str) -> int | float:
    value = part[key]
    is_number = type(value) in (int, float) and math.isfinite(value)
    is_whole = is_number and value == int(value)
    if not is_number or value < 0 or (value == 0 and key != "video_start"):
        raise InputError(f"field {path}.{key}: is {value!r}; give a number above 0, or leave it out.")
    if key in _WHOLE_SETTINGS:
        if not is_whole:
            raise InputError(f"field {path}.{key}: is {value!r}; give a whole number.")
        return int(value)
    return value


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
