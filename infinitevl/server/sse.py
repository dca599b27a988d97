"""Answers as server-sent events, and clients that go away."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from infinitevl.server.errors import as_api_error, body_of

DONE = "data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(data: dict[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def streamed(events: AsyncIterator[dict[str, Any]], cancel: Callable[[], None]) -> StreamingResponse:
    """A response of events, then [DONE]; an error on the way is the last event. cancel: runs at any end."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for data in events:
                yield event(data)
            yield DONE
        except Exception as error:
            yield event(body_of(as_api_error(error)))

    return _Stream(lines(), cancel)


def streamed_by_name(events: AsyncIterator[dict[str, Any]], cancel: Callable[[], None]) -> StreamingResponse:
    """A response of events whose names are their types, as OpenAI's responses have them; they say the end."""

    async def lines() -> AsyncIterator[str]:
        async for data in events:
            yield f"event: {data['type']}\n{event(data)}"

    return _Stream(lines(), cancel)


class _Stream(StreamingResponse):
    """Lines of events; `cancel` runs at any end, also where the client is gone before the first one."""

    def __init__(self, lines: AsyncIterator[str], cancel: Callable[[], None]) -> None:
        super().__init__(lines, media_type="text/event-stream", headers=HEADERS)
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()


@contextlib.asynccontextmanager
async def cancelled_if_gone(request: Request, cancel: Callable[[], None]) -> AsyncIterator[None]:
    """Call `cancel` when the client goes away, and at the end."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        cancel()
