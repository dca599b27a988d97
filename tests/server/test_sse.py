"""Server-sent events: what is cancelled when nobody listens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from infinitevl.server.sse import streamed, streamed_by_name


async def events() -> AsyncIterator[dict[str, Any]]:
    while True:
        yield {"type": "x"}
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", [streamed, streamed_by_name])
@pytest.mark.parametrize("num_before", [0, 3])
@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_client_that_is_gone_cancels_even_before_the_first_event(kind, num_before, version) -> None:
    cancelled, sent = [], []

    async def receive() -> dict[str, Any]:
        while len(sent) < num_before:
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if len(sent) >= num_before:
            raise OSError("gone")  # as servers of the newer kind say it
        sent.append(message)

    async def main() -> None:
        response = kind(events(), lambda: cancelled.append(True))
        await response({"type": "http", "asgi": {"spec_version": version}}, receive, send)

    with contextlib.suppress(ClientDisconnect, OSError):
        asyncio.run(asyncio.wait_for(main(), 10))
    assert cancelled
