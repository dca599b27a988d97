"""Calls that are tried again, and events that go on after a lost connection: against servers of a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from infinitevl.client import Client, ClientError, Stream
from infinitevl.client.calls import pause

Handler = Callable[[httpx.Request], httpx.Response]
BUSY = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": "busy"}}


def client_of(handler: Handler, **options: Any) -> Client:
    """A client whose calls a function answers."""
    client = Client("http://server", **options)
    client._caller._http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(handler))
    return client


class Pieces(httpx.AsyncByteStream):
    """A body in pieces; an exception among them breaks it off."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes time."""
    seconds: list[float] = []

    async def note(delay: float) -> None:
        seconds.append(delay)
        await asyncio.sleep(0)

    for module in ("calls", "stream"):
        monkeypatch.setattr(f"infinitevl.client.{module}.sleep", note)
    return seconds


def test_a_busy_server_is_asked_again_when_it_says(waits: list[float]) -> None:
    answers = iter(
        [(429, {"retry-after": "2"}), (503, {}), (503, {"retry-after": "Wed, 21 Oct 2026"}), (200, {})]
    )

    def handler(request: httpx.Request) -> httpx.Response:
        status, headers = next(answers)
        return httpx.Response(status, headers=headers, json=BUSY if status != 200 else {"data": []})

    assert asyncio.run(client_of(handler).streams()) == []
    assert len(waits) == 3 and 2 <= waits[0] <= 2.5 and max(waits[1:]) < 1


def test_a_server_that_stays_busy_is_given_up(waits: list[float]) -> None:
    client = client_of(lambda request: httpx.Response(429, json=BUSY), retries=2)
    with pytest.raises(ClientError, match="busy") as error:
        asyncio.run(client.streams())
    assert (error.value.status, error.value.code, len(waits)) == (429, "busy", 2)


def test_what_a_server_may_have_done_is_not_asked_again(waits: list[float]) -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        raise httpx.ReadError("gone", request=request)

    with pytest.raises(ClientError) as error:
        asyncio.run(client_of(handler).open())
    assert error.value.code == "unreachable" and len(seen) == 1 and not waits


@pytest.mark.parametrize("asked", [None, "-1", "nan", "soon", "inf", "1e9"])
def test_a_pause_has_an_end(asked: str | None) -> None:
    assert all(0 <= pause(attempt, asked) <= 30 for attempt in range(20))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b'{"error": 5}', b'{"error": {}}', b"\xff"])
def test_an_error_of_any_shape_is_one_of_ours(body: bytes) -> None:
    with pytest.raises(ClientError) as error:
        asyncio.run(client_of(lambda request: httpx.Response(502, content=body)).streams())
    assert error.value.status == 502 and str(error.value)


def test_an_answer_that_is_no_json_is_an_error() -> None:
    with pytest.raises(ClientError, match="infinitevl serve"):
        asyncio.run(client_of(lambda request: httpx.Response(200, content=b"<html>")).streams())


def event(number: int, answer: str = "yes") -> bytes:
    data = json.dumps({"id": f"event_{number}", "answer": answer}, ensure_ascii=False)
    return f"id: event_{number}\ndata: {data}\n\n".encode()


def test_events_go_on_after_the_last_one_when_a_connection_is_lost(waits: list[float]) -> None:
    second = event(2, "a\u2028b\x85c")
    bodies = [
        Pieces(b": events\n\n", event(1), second[:30], httpx.ReadError("lost")),
        httpx.ConnectError("away"),
        Pieces(second[:31], second[31:], b": nothing new\n\n"),
        Pieces(event(3)),
    ]
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if "text/event-stream" not in request.headers["accept"]:
            return httpx.Response(200, json={"object": "list", "data": [{"id": "event_0"}]})
        asked.append(request.url.params["after"])
        if not bodies:
            return httpx.Response(404, json={"error": {"message": "gone", "code": "stream_not_found"}})
        body = bodies.pop(0)
        if isinstance(body, Exception):
            raise body
        return httpx.Response(200, stream=body)

    async def listen() -> list[tuple[str, str]]:
        found = []
        stream = Stream(client_of(handler)._caller, {"id": "stream_1"})
        with pytest.raises(ClientError) as gone:
            async for each in stream.events():
                found.append((each["id"], each["answer"]))
        assert gone.value.code == "stream_not_found"
        return found

    assert asyncio.run(listen()) == [("event_1", "yes"), ("event_2", "a\u2028b\x85c"), ("event_3", "yes")]
    assert asked == ["event_0", "event_1", "event_1", "event_2", "event_3"]


def test_events_of_a_server_that_stays_away_end(waits: list[float]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("away")

    async def listen() -> None:
        async for _ in Stream(client_of(handler, retries=2)._caller, {"id": "x"}).events(after=""):
            pass

    with pytest.raises(ClientError, match="away"):
        asyncio.run(listen())
