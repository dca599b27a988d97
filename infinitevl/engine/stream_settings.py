"""What is saved of a stream beside its state: read back and checked."""

import json
import os
from typing import Any

from infinitevl.errors import StateError
from infinitevl.state_file import saved_settings

SETTINGS = ("mode", "frame_size", "keep_turns", "system")


def stream_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was saved of a session beside its state.

    Raises:
        StateError: nothing was, or values that no session has.
    """
    text = saved_settings(path)
    try:
        settings = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        settings = None
    if not isinstance(settings, dict) or settings.keys() != set(SETTINGS) or not _are_possible(**settings):
        raise StateError(
            f"{path} holds a state but not the settings of a stream. Save streams with session.save(path); "
            "StreamState.load reads the state alone."
        )
    return settings


def _are_possible(mode: Any, frame_size: Any, keep_turns: Any, system: Any) -> bool:
    is_size = isinstance(frame_size, list) and [type(side) for side in frame_size] == [int, int]
    kinds = isinstance(mode, str), isinstance(system, str | None), isinstance(keep_turns, bool)
    return all(kinds) and (is_size or frame_size is None)
