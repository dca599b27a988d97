"""A realtime session: what the events of a client do to a stream and its conversation."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np

from infinitevl.errors import InfiniteVLError
from infinitevl.processing.fetching.addresses import data_uri, is_data_uri
from infinitevl.processing.pictures.opening import open_image
from infinitevl.server.context import Context
from infinitevl.server.errors import ApiError, as_api_error, invalid, unsupported
from infinitevl.server.realtime.config import Config
from infinitevl.server.realtime.events import Event, error_event, event
from infinitevl.server.realtime.feed import MOST_BYTES, Clock, Feed
from infinitevl.server.realtime.items import Conversation, Item
from infinitevl.server.realtime.response import Response, plan
from infinitevl.server.realtime.schemas import (
    CancelResponse,
    CreateItem,
    CreateResponse,
    InputImage,
    NamedItem,
    ResponseFields,
    UpdateSession,
    check_offered,
    parsed,
)
from infinitevl.server.streams import Stream

_AUDIO = ("input_audio_buffer.", "output_audio_buffer.", "conversation.item.truncate")


class Client(Protocol):
    """Who is told of what happens (see `connection.Outbox`)."""

    def put(self, event: Event) -> None: ...
    def end(self, code: int, reason: str) -> None: ...


class RealtimeSession:
    """A conversation over one stream, which outlives the connections of its client.

    left: when the last client went away, of the monotonic clock; None while one is there.
    """

    def __init__(self, stream: Stream, context: Context) -> None:
        self.stream, self.context = stream, context
        self.id = f"sess_{stream.id.removeprefix('stream_')}"
        self.config = Config.of(stream.settings)
        self.conversation = Conversation(context.limits.question_letters)
        self.feed = Feed(stream, context.worker, lambda error: self.send(error_event(error)))
        self.response: Response | None = None
        self.left: float | None = time.monotonic()
        self._clock = Clock(stream)
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._handlers: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "session.update": self._update,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.delete": self._delete_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }

    # ------ clients

    def attach(self, client: Client, other: tuple[int, str]) -> None:
        """Let a client have the session; one that has it is sent away with a close code and a reason."""
        if self._client is not None:
            self._client.end(*other)
        self._cancel()
        self._client, self.left = client, None
        self.send(event("session.created", session=self.as_json()))
        shown = {"id": self.conversation.id, "object": "realtime.conversation"}
        self.send(event("conversation.created", conversation=shown))

    def detach(self, client: Client) -> None:
        """Note that a client went away; an answer that it waited for is given up."""
        if self._client is client:
            self._client, self.left = None, time.monotonic()
            self._cancel()

    def close(self, code: int, reason: str) -> None:
        """End for good."""
        self._cancel()
        self.feed.close()
        if self._client is not None:
            self._client.end(code, reason)

    def send(self, event: Event) -> None:
        """Tell the client, if one is there."""
        if self._client is not None:
            self._client.put(event)

    def as_json(self) -> dict[str, Any]:
        """What a client is told of it."""
        base = {"id": self.id, "model": self.context.settings.model, "stream": self.stream.as_json()}
        return base | self.config.as_json()

    # ------ what a client sends

    async def hear(self, text: str) -> None:
        """Do what an event says; what is wrong with it is said in an error event."""
        event_id = None
        try:
            data = _decoded(text)
            given = data.get("event_id")
            event_id = given if isinstance(given, str) and len(given) <= 512 else None
            await self._handler(data)(data)
        except (ApiError, InfiniteVLError) as error:
            self.send(error_event(as_api_error(error), event_id))

    async def see(self, data: bytes) -> None:
        """Take a frame (JPEG, PNG), of which the newest win."""
        try:
            image = await asyncio.to_thread(_picture, data, "frame")
            self.feed.add(image, self._clock.time(self.stream, None, is_next=False))
        except ApiError as error:
            self.send(error_event(error))

    def _handler(self, data: dict[str, Any]) -> Callable[[dict[str, Any]], Awaitable[None]]:
        kind = data.get("type")
        if not isinstance(kind, str):
            raise invalid("an event needs a type.", "type")
        if kind.startswith(_AUDIO):
            raise unsupported(kind[:100], "this server neither hears nor speaks.")
        if kind not in self._handlers:
            raise invalid(f"type is {kind[:100]!r}; it can be {', '.join(self._handlers)}.", "type")
        return self._handlers[kind]

    async def _update(self, data: dict[str, Any]) -> None:
        fields = parsed(UpdateSession, data).session
        context = self.context
        self.config = self.config.updated(fields, context.settings.model, self.id, context.limits)
        told = self.config.keep_turns, self.config.instructions or None
        if told != (self.stream.settings.keep_turns, self.stream.settings.system):
            await context.registry.configure(self.stream, *told)
        self.send(event("session.updated", session=self.as_json()))

    async def _create_item(self, data: dict[str, Any]) -> None:
        _check_kind(data.get("item"))
        given = parsed(CreateItem, data)
        item = Item.of(given.item)
        parts = [
            (place, part) for place, part in enumerate(given.item.content) if isinstance(part, InputImage)
        ]
        if parts and item.role != "user":
            raise unsupported("item.content", "pictures are shown by the user, not by the system.")
        self.conversation.check(item, given.previous_item_id)
        pictures = await asyncio.to_thread(_pictures, [(place, part.image_url) for place, part in parts])
        self._show(item, pictures, [part.time for _, part in parts])
        previous = self.conversation.append(item)
        for kind in ("conversation.item.added", "conversation.item.done"):
            self.send(event(kind, previous_item_id=previous, item=item.as_json()))

    def _show(self, item: Item, pictures: list[np.ndarray], times: list[float | None]) -> None:
        """Put all pictures of an item on their way, or none."""
        try:
            for number, (image, given) in enumerate(zip(pictures, times, strict=True)):
                seconds = self._clock.time(self.stream, given, is_next=number > 0)
                self.feed.add(image, seconds, item)
        except ApiError:
            self.feed.remove(item)
            raise

    async def _retrieve_item(self, data: dict[str, Any]) -> None:
        item = self.conversation.find(parsed(NamedItem, data).item_id)
        self.send(event("conversation.item.retrieved", item=item.as_json()))

    async def _delete_item(self, data: dict[str, Any]) -> None:
        item_id = parsed(NamedItem, data).item_id
        item = self.conversation.find(item_id)
        self.conversation.delete(item_id)
        self.feed.remove(item)
        self.send(event("conversation.item.deleted", item_id=item_id))

    async def _create_response(self, data: dict[str, Any]) -> None:
        fields = parsed(CreateResponse, data).response or ResponseFields()
        check_offered(fields, "response")
        if self.response is not None:
            text = f"the response {self.response.id} is under way: wait for its response.done, or cancel it."
            raise ApiError(409, text, code="conversation_already_has_active_response")
        self.response = Response(self, plan(self, fields))
        self._task = asyncio.create_task(self.response.run())

    async def _cancel_response(self, data: dict[str, Any]) -> None:
        wanted = parsed(CancelResponse, data).response_id
        if self.response is None or wanted not in (None, self.response.id):
            raise ApiError(409, "no such response is under way.", code="response_cancel_not_active")
        self._cancel()

    def _cancel(self) -> None:
        if self.response is not None:
            self.response.cancel()


def _decoded(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid("an event is a JSON object; this text is none.") from error
    if not isinstance(data, dict):
        raise invalid("an event is a JSON object with a type.")
    return data


def _check_kind(item: Any) -> None:
    """Refuse items that this model cannot read, by what they are."""
    if not isinstance(item, dict):
        return
    kind, role = item.get("type"), item.get("role")
    if isinstance(kind, str) and kind != "message":
        raise unsupported("item.type", f"{kind[:100]!r} items are for tools; this server takes messages.")
    if role == "assistant":
        raise unsupported("item.role", "the memory holds the model's own answers; give user or system.")


def _pictures(addresses: list[tuple[int, str]]) -> list[np.ndarray]:
    pictures: list[np.ndarray] = []
    for place, address in addresses:
        pictures.append(_of_address(address, f"item.content[{place}].image_url"))
        if sum(picture.nbytes for picture in pictures) > MOST_BYTES:
            text = (
                f"the pictures of one item have at most {MOST_BYTES} bytes of pixels: send them in several."
            )
            raise invalid(text, "item.content")
    return pictures


def _of_address(address: str, param: str) -> np.ndarray:
    if not is_data_uri(address):
        raise invalid(f"{param}: give a data URI of a JPEG or PNG.", param)
    try:
        data = data_uri(address)
    except InfiniteVLError as error:
        raise ApiError(400, str(error), param=param, code="invalid_image") from error
    return _picture(data, param)


def _picture(data: bytes, param: str) -> np.ndarray:
    try:
        return np.asarray(open_image(data))
    except InfiniteVLError as error:
        raise ApiError(400, str(error), param=param, code="invalid_image") from error
