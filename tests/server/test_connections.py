"""Connections that say nothing, half of a request, or what is no WebSocket."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from infinitevl.server import connections
from infinitevl.server.app import create_app
from infinitevl.server.connections import TimeoutProtocol
from infinitevl.server.settings import ServerSettings
from tests.server.serving import Running, opened, push, tiny_engine, until

HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """Of a server that waits half a second for a head."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    app = create_app(tiny_engine(), ServerSettings(model="tiny", secret=b"a secret"))
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", http=TimeoutProtocol, timeout_keep_alive=60)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        yield listener.getsockname()
        server.should_exit = True
        thread.join(30)


def seconds_until_closed(connection: socket.socket) -> float:
    began = time.monotonic()
    connection.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", b"GET /", HEAD], ids=["nothing", "a few bytes", "headers"])
def test_a_connection_without_a_whole_request_is_closed(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert 0.1 < seconds_until_closed(connection) < 5


def test_a_client_that_sends_a_byte_at_a_time_is_not_waited_for(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection, contextlib.suppress(OSError):
        connection.sendall(HEAD + b"\r\n")  # a whole one first
        assert b"200" in connection.recv(65536)
        began = time.monotonic()
        for byte in HEAD * 10:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
            assert time.monotonic() - began < 5
    assert time.monotonic() - began >= 0.4


def test_idle_clients_slow_bodies_answers_and_websockets_are_left_alone(address: tuple[str, int]) -> None:
    url = f"{address[0]}:{address[1]}"
    with (
        httpx.Client(base_url=f"http://{url}", timeout=60) as client,
        connect(f"ws://{url}/v1/realtime") as talk,
        socket.create_connection(address) as slow,
    ):
        stream = opened(client)
        idle = socket.create_connection(address)
        idle.sendall(HEAD + b"\r\n")
        slow.sendall(
            b"POST /v1/streams HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{"
        )
        headers = {"accept": "text/event-stream"}
        with client.stream("GET", f"/v1/streams/{stream}/events", headers=headers) as response:
            lines = response.iter_lines()
            assert next(lines) == ": events"
            time.sleep(1.2)
            client.delete(f"/v1/streams/{stream}")
            assert list(lines) == [""]
        slow.sendall(b"}")
        assert b"200 OK" in slow.recv(65536)
        idle.sendall(HEAD + b"\r\n")
        until(lambda: idle.recv(65536).count(b"200 OK") > 0)
        idle.close()
        talk.send("{}")
        assert json.loads(talk.recv(timeout=10))["type"] == "session.created"


@pytest.mark.parametrize("path", ["/v1/nothing", "/", "/v1/streams", "/v1/realtime?name=" + 201 * "a"])
def test_what_is_no_websocket_is_refused_in_the_shape_of_all_errors(server: Running, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(server.url.replace("http", "ws") + path)
    response = refused.value.response
    assert response.status_code in (400, 404)
    assert set(json.loads(response.body)["error"]) == {"message", "type", "param", "code"}


def test_events_after_one_of_an_unnamed_stream_are_refused(server: Running) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(server.url.replace("http", "ws") + "/v1/events?after=event_0")
    assert json.loads(refused.value.response.body)["error"]["param"] == "after"
    stream = opened(server.client)
    assert push(server.client, stream, 0).status_code == 200
