"""The settings of a realtime session, and how they are changed."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from infinitevl.server.errors import invalid, unsupported
from infinitevl.server.realtime.schemas import SessionFields, check_offered
from infinitevl.server.sampling import DEFAULT_TOKENS
from infinitevl.server.settings import Limits
from infinitevl.server.streams import Settings


@dataclass(frozen=True)
class Config:
    """How a session is asked.

    instructions: the system turn; empty for none. keep_turns: what is asked and answered becomes part of the
    stream, whose frames wait for each answer.
    """

    instructions: str
    keep_turns: bool
    max_output_tokens: int | Literal["inf"] = DEFAULT_TOKENS

    @classmethod
    def of(cls, settings: Settings) -> "Config":
        """As a stream was opened."""
        return cls(settings.system or "", settings.keep_turns)

    def updated(self, fields: SessionFields, model: str, session_id: str, limits: Limits) -> "Config":
        """With what a client changes.

        Raises:
            ApiError: 400, names what cannot be had.
        """
        check_offered(fields, "session")
        for name, given, own in (("model", fields.model, model), ("id", fields.id, session_id)):
            if given not in (None, own):
                raise unsupported(f"session.{name}", f"it is {own!r} for as long as the session lasts.")
        self.length(fields.max_output_tokens, limits, "session")
        changes = fields.model_dump(
            include={"instructions", "max_output_tokens", "keep_turns"}, exclude_none=True
        )
        return replace(self, **changes)

    def length(self, given: int | Literal["inf"] | None, limits: Limits, place: str) -> int:
        """Tokens that an answer may have.

        Raises:
            ApiError: 400, more than the server allows.
        """
        wanted = self.max_output_tokens if given is None else given
        if wanted == "inf":
            return limits.answer_tokens
        if wanted > limits.answer_tokens:
            name = f"{place}.max_output_tokens"
            raise invalid(f"{name} is {wanted}, more than {limits.answer_tokens}, the limit.", name)
        return wanted

    def as_json(self) -> dict[str, Any]:
        """What a client is told of it."""
        return {
            "type": "realtime",
            "object": "realtime.session",
            "output_modalities": ["text"],
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "keep_turns": self.keep_turns,
            "tools": [],
            "tool_choice": "none",
            "truncation": "disabled",
            "audio": None,
            "tracing": None,
        }
