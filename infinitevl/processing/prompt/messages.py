"""Checks the messages of a chat, and names the field that is wrong."""

import re
from typing import Any

from infinitevl.errors import InputError
from infinitevl.processing.prompt.media_settings import check_settings

MEDIA_KEYS = ("image", "image_url", "video", "url", "path", "base64")
KIND_OF_TYPE = {"text": "text", "image": "image", "image_url": "image", "video": "video"}
_BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content")
VALID_MESSAGE = (
    "give {'role': 'user', 'content': text or a list of {'type': 'text' or 'image' or 'video', ...}}"
)


def vision_kind(part: dict[str, Any]) -> str | None:
    """Returns "image", "video", or None for any other part of a message, as the template decides it."""
    if part.get("type") == "image" or "image" in part or "image_url" in part:
        return "image"
    return "video" if part.get("type") == "video" or "video" in part else None


def checked_message(message: Any, path: str, template: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InputError(f"field {path}: a message needs a role; {VALID_MESSAGE}.")
    check_text(message["role"], f"field {path}.role")
    for key in (key for key in _BESIDE_CONTENT if message.get(key)):
        if not mentions(template, key):
            raise InputError(
                f"field {path}.{key}: the chat template has no place for it; put it into content."
            )
        if message.get("content") is None:
            message = {**message, "content": ""}
    check_content(message.get("content"), f"{path}.content")
    return message


def mentions(template: str, name: str) -> bool:
    """Tells whether a chat template uses a variable or key of this name."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def check_text(text: str, place: str) -> None:
    """Raises InputError, beginning with `place`, for a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: character {error.start} is half of one ({text[error.start]!r}, a lone surrogate); "
            "read the text as UTF-8, or leave it out."
        ) from error


def check_content(content: Any, path: str) -> None:
    """Checks that content is text or a list of parts, each of them text, a picture or a video.

    Raises InputError that names the field; `path` is the content's place.
    """
    if isinstance(content, str):
        return check_text(content, f"field {path}")
    if not isinstance(content, list | tuple) or not all(isinstance(part, dict) for part in content):
        raise InputError(f"field {path}: is {type(content).__name__}; {VALID_MESSAGE}.")
    for index, part in enumerate(content):
        _check_part(part, f"{path}[{index}]")


def _check_part(part: dict[str, Any], path: str) -> None:
    check_type(part, path)
    if vision_kind(part):
        return check_settings(part, path)
    if "text" not in part:
        raise InputError(f"field {path}: {sorted(part)} holds no text; give {{'type': 'text', 'text': ...}}.")
    if not isinstance(part["text"], str):
        raise InputError(f"field {path}.text: is {type(part['text']).__name__}; give a string.")
    check_text(part["text"], f"field {path}.text")


def check_type(part: dict[str, Any], path: str) -> None:
    """Checks that a part's type, if it has one, exists and matches what the part holds.

    Raises InputError, beginning with `path`, the part's place.
    """
    if "type" not in part:
        return
    kind = KIND_OF_TYPE.get(part["type"]) if isinstance(part["type"], str) else None
    if kind is None:
        raise InputError(f"field {path}.type: is {part['type']!r}; valid are text, image, video.")
    held = vision_kind(part) or "text"
    if held != kind:
        what = f"but the part holds {sorted(set(part) - {'type'})}"
        raise InputError(f"field {path}.type: is {part['type']!r}, {what}; give each part one type.")


def check_shown(content: Any, path: str) -> None:
    """Checks that every picture and video of checked content says where it is or what it holds.

    Raises InputError that names the part; `path` is the content's place.
    """
    for index, part in enumerate([] if isinstance(content, str) else content):
        kind = vision_kind(part)
        if kind and all(part.get(key) is None for key in MEDIA_KEYS):
            valid = "give a path, an address or what it holds, there or as url, path or base64"
            raise InputError(f"field {path}[{index}].{kind}: is missing; {valid}.")
