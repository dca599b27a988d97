"""The events that a client sends. What is not named here is refused by its name."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from infinitevl.server.errors import ApiError, invalid, unsupported
from infinitevl.server.schemas import Body, Text

Id = Annotated[str, Field(min_length=1, max_length=512)]
Length = Annotated[int, Field(ge=1)] | Literal["inf"]
Instructions = Annotated[str, Field(max_length=8192)]
B = TypeVar("B", bound=BaseModel)


class Event(Body):
    """What all events have."""

    type: str
    event_id: Id | None = None


class InputText(Body):
    """Text of a message."""

    type: Literal["input_text"]
    text: Annotated[Text, Field(min_length=1)]


class InputImage(Body):
    """A frame. detail: accepted, and without effect: the frames of a stream have one size. time: seconds."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None
    time: float | None = Field(None, ge=-1e10, le=1e10, allow_inf_nan=False)


class Message(Body):
    """A message of the user, or of the system."""

    type: Literal["message"]
    role: Literal["user", "system"]
    content: Annotated[
        list[Annotated[InputText | InputImage, Field(discriminator="type")]],
        Field(min_length=1, max_length=256),
    ]
    id: Id | None = None
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class CreateItem(Event):
    """conversation.item.create"""

    item: Message
    previous_item_id: Id | None = None


class NamedItem(Event):
    """conversation.item.retrieve and conversation.item.delete"""

    item_id: Id


class Common(Body):
    """What a session and one response can both be told."""

    instructions: Instructions | None = None
    max_output_tokens: Length | None = None
    output_modalities: list[str] | None = None
    # known by name, and refused unless they ask for nothing
    audio: Any = None
    parallel_tool_calls: bool | None = None
    prompt: Any = None
    reasoning: Any = None
    tool_choice: Any = None
    tools: Any = None


class SessionFields(Common):
    """The session of session.update. keep_turns: is not of OpenAI."""

    type: Literal["realtime"] = "realtime"
    keep_turns: bool | None = None
    model: str | None = None
    id: str | None = None
    object: str | None = None
    include: Any = None
    tracing: Any = None
    truncation: Any = None


class UpdateSession(Event):
    """session.update"""

    session: SessionFields


class ResponseFields(Common):
    """The response of response.create."""

    conversation: Literal["auto", "none"] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    input: Any = None


class CreateResponse(Event):
    """response.create"""

    response: ResponseFields | None = None


class CancelResponse(Event):
    """response.cancel"""

    response_id: Id | None = None


# Fields of OpenAI's API that a conversation in text does not need, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "include": ([],),
    "input": (),
    "output_modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prompt": (),
    "reasoning": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "tracing": (),
    "truncation": ("auto", "disabled"),
}


def parsed(kind: type[B], data: Mapping[str, Any]) -> B:
    """An event of a client.

    Raises:
        ApiError: 400, names the field that is wrong.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _of_validation(error) from error


def _of_validation(error: ValidationError) -> ApiError:
    first = max(error.errors(include_context=False, include_input=False), key=lambda each: len(each["loc"]))
    names = [str(part) if isinstance(part, str) else f"[{part}]" for part in first["loc"]]
    param = ".".join(name[:100] for name in names).replace(".[", "[") or None
    if first["type"] == "extra_forbidden":
        return unsupported(str(param), "leave it out; docs/serving.md lists what is known.")
    if first["type"] in ("union_tag_invalid", "literal_error"):
        return unsupported(str(param), f"{first['msg']}.")
    return invalid(f"{param or 'the event'}: {first['msg']}.", param)


def check_offered(fields: Common, place: str) -> None:
    """See that nothing is asked for that this server does not offer.

    Raises:
        ApiError: 400, names the field.
    """
    for name, neutral in _NEUTRAL.items():
        value = getattr(fields, name, None)
        if value is not None and value not in neutral:
            raise unsupported(f"{place}.{name}", "this server answers in text, from text and pictures.")
    heard = _first_value(fields.audio)
    if heard is not None:
        raise unsupported(f"{place}.audio{heard}", "this server neither hears nor speaks; leave it null.")


def _first_value(value: Any, depth: int = 0) -> str | None:
    """The path to something in a nested value that is not null; None where there is nothing."""
    if value is None:
        return None
    if not isinstance(value, dict) or depth > 8:
        return ""
    found = ((name, _first_value(each, depth + 1)) for name, each in value.items())
    return next((f".{str(name)[:100]}{path}" for name, path in found if path is not None), None)
