"""The WebSocket at /v1/realtime: events in, events out, and what each end of it means."""

import asyncio
import contextlib
import json
import logging
from collections import deque
from typing import Annotated

from fastapi import APIRouter, Query, WebSocket

from infinitevl.server.chat import check_model
from infinitevl.server.context import Owner, Parts
from infinitevl.server.errors import unsupported
from infinitevl.server.realtime.events import Event
from infinitevl.server.realtime.session import RealtimeSession
from infinitevl.server.realtime.sessions import TAKEN_OVER
from infinitevl.server.security import SUBPROTOCOL
from infinitevl.server.stream_calls import CHOSEN_ID

router = APIRouter()
logger = logging.getLogger(__name__)
_FAREWELL = 2.0  # seconds for a client to take what is left
_TOO_SLOW = (1013, "events were not taken; connect again with session_id")
_FAILED = (1011, "the server failed; its log says why")
Name = Annotated[str | None, Query(max_length=200)]


class Outbox:
    """Events that a client has not taken yet, and how its connection shall end.

    Args:
        max_bytes: of events; a client that leaves more lying is sent away.
    """

    def __init__(self, max_bytes: int) -> None:
        self._events: deque[str] = deque()
        self._size, self._max_bytes = 0, max_bytes
        self._moved = asyncio.Event()
        self.farewell: tuple[int, str] | None = None
        self.ended = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event; those after the end are dropped."""
        if self.farewell is not None:
            return
        text = json.dumps(event)
        self._size += len(text)
        self._events.append(text)
        if self._size > self._max_bytes:
            self._events.clear()
            self.end(*_TOO_SLOW)
        self._moved.set()

    def end(self, code: int, reason: str) -> None:
        """Close the connection with this code, once the events before were sent."""
        self.farewell = self.farewell or (code, reason)
        self.ended.set()
        self._moved.set()

    async def send_to(self, socket: WebSocket) -> None:
        """Send what comes, until the end."""
        while self._events or self.farewell is None:
            while not self._events and self.farewell is None:
                self._moved.clear()
                await self._moved.wait()
            if self._events:
                text = self._events.popleft()
                await socket.send_text(text)
                self._size -= len(text)


@router.websocket("/v1/realtime")
async def realtime(
    socket: WebSocket,
    owner: Owner,
    context: Parts,
    model: Name = None,
    session_id: Name = None,
    stream: Name = None,
    name: Name = None,
    call_id: Name = None,
) -> None:
    """Talk to a stream."""
    if call_id is not None:
        raise unsupported("call_id", "this server takes no calls by telephone or WebRTC.")
    if model is not None:
        check_model(model, context)
    chosen = socket.headers.get(CHOSEN_ID) if context.settings.is_replica else None
    session = await context.realtime.find_or_open(owner, context, session_id, stream, name, chosen)
    outbox = Outbox(context.limits.unread_bytes)
    session.attach(outbox, TAKEN_OVER)
    try:
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
        await _talk(socket, session, outbox)
    finally:
        session.detach(outbox)


async def _talk(socket: WebSocket, session: RealtimeSession, outbox: Outbox) -> None:
    """Hear and say until one side ends it."""
    hearing = asyncio.create_task(_hear(socket, session))
    saying = asyncio.create_task(outbox.send_to(socket))
    ended = asyncio.create_task(outbox.ended.wait())
    try:
        await asyncio.wait((hearing, saying, ended), return_when=asyncio.FIRST_COMPLETED)
        if hearing.done() and (failure := hearing.exception()) is not None:
            logger.error("a realtime session failed", exc_info=failure)
            outbox.end(*_FAILED)
        if outbox.farewell is not None:
            with contextlib.suppress(Exception):  # it may be gone, or not read at all
                async with asyncio.timeout(_FAREWELL):
                    await saying
                    await socket.close(*outbox.farewell)
    finally:
        for task in (hearing, saying, ended):
            task.cancel()
        await asyncio.gather(hearing, saying, ended, return_exceptions=True)


async def _hear(socket: WebSocket, session: RealtimeSession) -> None:
    """Do what the client sends, in order, until it is gone."""
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        if message.get("bytes") is not None:
            await session.see(message["bytes"])
        else:
            await session.hear(message.get("text") or "")
