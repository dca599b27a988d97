"""The events that the server sends, in the shapes of OpenAI's Realtime API."""

import secrets
from typing import Any

from infinitevl.server.errors import ApiError, body_of

Event = dict[str, Any]


def new_id(kind: str) -> str:
    """A name that nothing else has."""
    return f"{kind}_{secrets.token_hex(12)}"


def event(kind: str, **fields: Any) -> Event:
    """An event of a kind."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def error_event(error: ApiError, event_id: str | None = None) -> Event:
    """An error; the connection stays open. event_id: of the client's event that caused it."""
    return event("error", error=body_of(error)["error"] | {"event_id": event_id})


def usage(num_input: int, num_output: int) -> dict[str, Any]:
    """Tokens of a response: the question's and the answer's; what the memory holds is not read again."""
    return {
        "total_tokens": num_input + num_output,
        "input_tokens": num_input,
        "output_tokens": num_output,
        "input_token_details": {
            "text_tokens": num_input,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": 0,
        },
        "output_token_details": {"text_tokens": num_output, "audio_tokens": 0},
    }
