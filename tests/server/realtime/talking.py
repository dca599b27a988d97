"""Realtime conversations of the tests: the official client, and what it must be told."""

import base64
from typing import Any

import openai
from openai.resources.realtime.realtime import RealtimeConnection
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from infinitevl.engine.sampling import Sampling
from infinitevl.engine.session import StreamSession, Turn
from infinitevl.processing.prompt.template import DEFAULT_SYSTEM
from tests.server.serving import MODEL, Running, picture, png
from tests.support import tiny_model, tiny_processor

EVENTS: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
LENGTH = 6


def client_of(server: Running, key: str = "none") -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key)


def connect(server: Running, key: str = "none", **query: str):
    """A connection of the official client, as a context manager."""
    return client_of(server, key).realtime.connect(model=MODEL, extra_query=query)


def received(connection: RealtimeConnection) -> Any:
    """The next event, whose shape is as OpenAI's client describes it."""
    data = connection.recv_bytes()
    event = EVENTS.validate_json(data, strict=True)
    return event


def until_type(connection: RealtimeConnection, kind: str) -> list[Any]:
    """All events up to one of a type."""
    events = [received(connection)]
    while events[-1].type != kind:
        assert events[-1].type != "error", events[-1]
        events.append(received(connection))
    return events


def begun(connection: RealtimeConnection, **session: Any) -> Any:
    """The session of a connection that was just opened, with short answers."""
    created, _ = until_type(connection, "conversation.created")
    update = {"type": "realtime", "max_output_tokens": LENGTH, **session}
    connection.session.update(session=update)  # type: ignore[arg-type]
    until_type(connection, "session.updated")
    return created.session


def image(seed: int, at: float | None = None) -> dict[str, Any]:
    """A picture of a message."""
    address = f"data:image/png;base64,{base64.b64encode(png(seed)).decode()}"
    return {"type": "input_image", "image_url": address} | ({} if at is None else {"time": at})


def text(words: str) -> dict[str, Any]:
    """A text of a message."""
    return {"type": "input_text", "text": words}


def say(connection: RealtimeConnection, *content: dict[str, Any], **item: Any) -> Any:
    """Add an item: as the server shows it."""
    message = {"type": "message", "role": "user", "content": list(content), **item}
    connection.conversation.item.create(item=message)  # type: ignore[arg-type]
    return until_type(connection, "conversation.item.done")[-1].item


def answered(connection: RealtimeConnection, **response: Any) -> str:
    """Ask for a response: its text."""
    connection.response.create(response=response)  # type: ignore[arg-type]
    events = until_type(connection, "response.done")
    pieces = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    output = events[-1].response.output[0].content[0].text
    assert pieces == output
    return output


def refused(connection: RealtimeConnection, code: str) -> Any:
    """The error that comes next."""
    event = received(connection)
    assert event.type == "error" and event.error.code == code, event
    return event.error


class Quiet:
    """The definition: a stream alone on an engine, which is shown and asked the same."""

    def __init__(self, keep: bool = True) -> None:
        self.session, self.keep = StreamSession(tiny_model(), tiny_processor()), keep

    def show(self, seed: int, at: float | None = None) -> None:
        """A frame."""
        self.session.observe(picture(seed), at=at)

    def ask(
        self, words: str, system: str | None = DEFAULT_SYSTEM, keep: bool | None = None, length: int = LENGTH
    ) -> str:
        """A question."""
        turn = Turn(self.keep if keep is None else keep, system, needs_frame=False)
        return self.session.finish(self.session.begin(words, Sampling(length), turn=turn))
