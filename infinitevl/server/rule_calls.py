"""The calls for watch rules and their events."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, WebSocket
from fastapi.responses import Response, StreamingResponse
from starlette.websockets import WebSocketDisconnect

from infinitevl.engine.rules import WatchRule
from infinitevl.errors import InputError
from infinitevl.server.context import Context, Owner, Parts, owner_of
from infinitevl.server.errors import ApiError, busy, invalid
from infinitevl.server.events import EventLog, Listener
from infinitevl.server.schemas import RuleRequest
from infinitevl.server.security import SUBPROTOCOL
from infinitevl.server.sse import HEADERS

router = APIRouter(prefix="/v1/streams/{stream_id}", dependencies=[Depends(owner_of)], tags=["rules"])
sockets = APIRouter()
_HEARTBEAT = 15.0  # seconds without an event after which a comment is sent
_GONE, _TRY_AGAIN = 1001, 1013  # close codes of RFC 6455
_EventId = Annotated[str | None, Query(max_length=100, description="Only events after this one.")]


@router.post("/rules")
async def add_rule(stream_id: str, body: RuleRequest, owner: Owner, context: Parts) -> dict[str, Any]:
    """Watch a stream: ask a question every so often, and make an event when the answer turns to yes."""
    stream = context.registry.find(stream_id, owner)
    if not body.question.strip():
        raise invalid("question: ask something in words.", "question")
    try:
        rule = WatchRule(**body.model_dump(exclude={"name", "webhook"}))
    except InputError as error:
        raise invalid(str(error), "expect") from error
    hook = None
    if body.webhook is not None:
        hook = await context.rules.webhooks.checked(owner, body.webhook.url, body.webhook.secret)
    return (await context.rules.add(stream, rule, body.name, hook)).as_json()


@router.get("/rules")
async def list_rules(stream_id: str, owner: Owner, context: Parts) -> dict[str, Any]:
    """The rules of a stream, oldest first."""
    rules = context.rules.of(context.registry.find(stream_id, owner))
    return {"object": "list", "data": [rule.as_json() for rule in rules]}


@router.delete("/rules/{rule_id}")
async def delete_rule(stream_id: str, rule_id: str, owner: Owner, context: Parts) -> dict[str, Any]:
    """Ask a rule no more."""
    await context.rules.end(context.rules.find(context.registry.find(stream_id, owner), rule_id))
    return {"id": rule_id, "object": "stream.rule.deleted", "deleted": True}


@router.get("/events", response_model=None)
async def events(
    stream_id: str,
    owner: Owner,
    context: Parts,
    after: _EventId = None,
    accept: Annotated[str | None, Header()] = None,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> dict[str, Any] | Response:
    """The newest events of a stream; with `Accept: text/event-stream` also those to come."""
    stream = context.registry.find(stream_id, owner)
    log, since = context.rules.events, after if last_event_id is None else last_event_id
    if "text/event-stream" not in (accept or ""):
        return {"object": "list", "data": log.of(stream.id, since)}
    _check_listeners(context, owner)
    body = _as_sse(log, owner, stream.id, since)
    return StreamingResponse(body, media_type="text/event-stream", headers=HEADERS)


@router.get("/events/{event_id}/picture", response_class=Response)
async def event_picture(stream_id: str, event_id: str, owner: Owner, context: Parts) -> Response:
    """The frame that an event is about, as a JPEG of at most 512 x 512 pixels."""
    stream = context.registry.find(stream_id, owner)
    picture = context.rules.events.picture(stream.id, event_id)
    if picture is None:
        raise ApiError(404, f"no picture is kept of {event_id[:100]!r}.", code="picture_not_found")
    return Response(picture, media_type="image/jpeg")


async def _as_sse(log: EventLog, owner: str, stream: str, after: str | None) -> AsyncIterator[str]:
    with log.listening(owner, stream, after) as listener:
        yield ": events\n\n"
        while True:
            try:
                event = await asyncio.wait_for(listener.queue.get(), _HEARTBEAT)
            except TimeoutError:
                yield ": nothing new\n\n"
                continue
            if event is None:
                return
            yield f"id: {event['id']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"


@sockets.websocket("/v1/events")
async def events_socket(
    socket: WebSocket, owner: Owner, context: Parts, stream: str | None = None, after: _EventId = None
) -> None:
    """Each event of this key as JSON text; `stream` asks for one stream alone, `after` for what it missed."""
    found = None if stream is None else context.registry.find(stream, owner).id
    _check_listeners(context, owner)
    offered = socket.scope.get("subprotocols", ())
    await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
    with context.rules.events.listening(owner, found, after) as listener:
        sender = asyncio.create_task(_send(socket, listener))
        reader = asyncio.create_task(_until_gone(socket))
        await asyncio.wait({sender, reader}, return_when=asyncio.FIRST_COMPLETED)
        for task in (sender, reader):
            task.cancel()
        await asyncio.gather(sender, reader, return_exceptions=True)
        if not reader.cancelled():
            return
        code = _TRY_AGAIN if listener.is_behind else _GONE
        await socket.close(code, "too far behind" if listener.is_behind else "the stream or the server ended")


async def _send(socket: WebSocket, listener: Listener) -> None:
    while (event := await listener.queue.get()) is not None:
        await socket.send_text(json.dumps(event, ensure_ascii=False))


async def _until_gone(socket: WebSocket) -> None:
    """Take what a client says, which means nothing here, until it goes."""
    while True:
        try:
            if (await socket.receive())["type"] == "websocket.disconnect":
                return
        except (WebSocketDisconnect, RuntimeError):
            return


def _check_listeners(context: Context, owner: str) -> None:
    most = context.limits.listeners_per_key
    if context.rules.events.num_listeners(owner) >= most:
        raise busy(f"{most} connections of this key wait for events, the limit.")
