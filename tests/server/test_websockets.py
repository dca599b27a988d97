"""Who may open a WebSocket, and how long its messages may be."""

import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from infinitevl.server import errors
from infinitevl.server.limits import Guard
from infinitevl.server.security import SUBPROTOCOL, Keys

KEY = "a-long-key"
LOCAL = {"host": "127.0.0.1:8000"}


def echo(keys: tuple[str, ...] = ()) -> TestClient:
    """A client of an app whose WebSocket says who called, and then what it hears."""
    app = FastAPI()
    errors.install(app)
    counts: list[tuple[str, int]] = []
    app.add_middleware(
        Guard,
        max_bytes=100,
        max_seconds=1,
        max_message=10,
        has_keys=bool(keys),
        count=lambda method, status: counts.append((method, status)),
    )
    app.state.counts = counts

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        owner = Keys(keys).owner(socket)
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
        await socket.send_text(owner)
        async for text in socket.iter_text():
            await socket.send_text(text)

    return TestClient(app)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": ""},
        LOCAL | {"origin": "http://evil.example"},
        LOCAL | {"origin": "null"},
        LOCAL | {"origin": "http://127.0.0.1:8001"},
    ],
)
def test_without_keys_pages_of_others_open_none(headers: dict[str, str]) -> None:
    client = echo()
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/ws", headers=headers):
        pass
    assert refused.value.status_code == 403 and refused.value.json()["error"]["message"]
    assert client.app.state.counts == [("WEBSOCKET", 403)]


def test_without_keys_programs_and_the_own_page_open_one() -> None:
    for headers in (LOCAL, LOCAL | {"origin": "http://127.0.0.1:8000"}):
        client = echo()
        with client.websocket_connect("/ws", headers=headers) as socket:
            assert socket.receive_text() == "local"
        assert client.app.state.counts == [("WEBSOCKET", 101)]


def test_a_key_comes_as_a_header_or_as_a_protocol_and_is_never_said_back() -> None:
    client = echo((KEY, "another-key"))
    with client.websocket_connect("/ws", headers={"authorization": f"Bearer {KEY}"}) as socket:
        owner = socket.receive_text()
        assert socket.accepted_subprotocol is None
    for offered in (
        [SUBPROTOCOL, f"openai-insecure-api-key.{KEY}"],
        [f"openai-insecure-api-key.{KEY}", "openai-beta.realtime-v1", SUBPROTOCOL],
    ):
        with client.websocket_connect("/ws", subprotocols=offered) as socket:
            assert socket.receive_text() == owner and socket.accepted_subprotocol == SUBPROTOCOL


@pytest.mark.parametrize(
    ("headers", "offered"),
    [
        ({}, None),
        ({}, [SUBPROTOCOL]),
        ({}, [SUBPROTOCOL, "openai-insecure-api-key."]),
        ({}, [SUBPROTOCOL, "openai-insecure-api-key.another-key"]),
        ({}, [KEY]),
        ({"authorization": KEY}, None),
        ({"authorization": f"Basic {KEY}"}, None),
        ({"authorization": "Bearer another-key"}, [f"openai-insecure-api-key.{KEY}"]),
    ],
)
def test_nobody_else_opens_one(headers: dict[str, str], offered: list[str] | None) -> None:
    client = echo((KEY,))
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/ws", headers=headers, subprotocols=offered),
    ):
        pass
    assert refused.value.status_code == 401
    assert refused.value.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("message", ["x" * 11, "ü" * 6, b"x" * 11])
def test_a_message_that_is_too_large_ends_it(message: str | bytes) -> None:
    with echo().websocket_connect("/ws", headers=LOCAL) as socket:
        socket.receive_text()
        for fits in ("x" * 10, "ü" * 5):
            socket.send_text(fits)
            assert socket.receive_text() == fits
        socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message)
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_text()
        assert ended.value.code == 1009
