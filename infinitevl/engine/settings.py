"""Reads and checks the settings that are saved beside a session's state."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from infinitevl.errors import StateError
from infinitevl.state_file import saved_settings


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and [type(side) for side in value] == [int, int]


_IS_POSSIBLE: dict[str, Callable[[Any], bool]] = {
    "kind": lambda value: value == "chat",
    "mode": lambda value: isinstance(value, str),
    "frame_size": lambda value: value is None or _is_size(value),
    "keep_turns": lambda value: isinstance(value, bool),
    "system": lambda value: isinstance(value, str | None),
}


def read_settings(path: str | os.PathLike[str], kind: str, names: Sequence[str]) -> dict[str, Any]:
    """Read the saved settings of a stream or chat, by these names.

    Raises:
        StateError: there are none or others, or values that no session has.
    """
    text = saved_settings(path)
    try:
        settings = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        settings = None
    is_whole = isinstance(settings, dict) and settings.keys() == set(names)
    if not is_whole or not all(_IS_POSSIBLE[name](value) for name, value in settings.items()):
        raise StateError(
            f"{path} holds a state but not the settings of a {kind}. Save sessions with session.save(path), "
            "load streams with StreamSession, chats with ChatSession; StreamState.load reads the state alone."
        )
    return settings
