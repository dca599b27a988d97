"""The ingress and two replicas in this process, with a ring that the test turns; Ray is in test_replicas."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from infinitevl.cli.serve import ServeOptions, run_serve
from infinitevl.errors import InfiniteVLError
from infinitevl.server.replicas import ingress, waiting
from infinitevl.server.replicas.forwarding import forward_socket
from infinitevl.server.replicas.ingress import create_ingress
from infinitevl.server.replicas.replica import Replica
from infinitevl.server.replicas.ring import Unreachable, sockets
from infinitevl.server.replicas.routing import call_of, passed_on
from infinitevl.server.replicas.serving import Plan
from infinitevl.server.run import EndingServer
from infinitevl.server.settings import Limits, ServerSettings
from infinitevl.server.stream_calls import CHOSEN_ID
from infinitevl.server.streams import is_id, new_id, root_of
from tests.server.serving import asked, endless_engine, error_of, opened, png, push, tiny_engine, until


@dataclass
class Turned:
    """A ring that sends every stream to the replica that stands first in `order`, but those in `own`."""

    order: list[Replica]
    own: dict[str, Replica] = field(default_factory=dict)

    async def place(self, stream_id: str) -> Path:
        replica = self.own.get(root_of(stream_id), self.order[0])
        path = await replica.place(stream_id)
        if path is None:
            raise Unreachable
        return Path(path)


@dataclass
class Served:
    """Two replicas behind one address."""

    url: str
    client: httpx.Client
    replicas: list[Replica]
    ring: Turned

    def has(self, stream: str) -> list[bool]:
        return [stream in replica.context.worker.streams for replica in self.replicas]


@contextlib.contextmanager
def listening(app) -> Iterator[str]:
    """An app on a free port of loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=10)
        ended = getattr(getattr(app, "state", None), "ingress", None)
        server = EndingServer(config, (lambda: None) if ended is None else ended.end_listening)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@contextlib.contextmanager
def replicas_behind_one_address(folder: Path, make_engine=tiny_engine, **settings) -> Iterator[Served]:
    run = folder / "run"
    run.mkdir()
    settings = ServerSettings(
        model="tiny", secret=b"a secret", state_dir=folder / "states", is_replica=True, **settings
    )
    replicas = [Replica(make_engine, settings, str(run)) for _ in range(2)]
    ring = Turned(list(replicas))
    try:
        with (
            listening(create_ingress(ring, run, settings)) as url,
            httpx.Client(base_url=url, timeout=60) as client,
        ):
            yield Served(url, client, replicas, ring)
    finally:
        for replica in replicas:
            asyncio.run(replica.end())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with replicas_behind_one_address(tmp_path_factory.mktemp("replicas")) as started:
        yield started


def test_all_calls_of_a_stream_and_its_forks_reach_one_replica(served: Served) -> None:
    first, second = served.replicas
    streams = []
    for replica in (first, second):
        served.ring.order = [replica]
        streams.append(opened(served.client))
        served.ring.own[streams[-1]] = replica
    fork = served.client.post(f"/v1/streams/{streams[1]}/fork").json()["id"]
    assert served.has(streams[0]) == [True, False]
    assert served.has(streams[1]) == served.has(fork) == [False, True]
    served.ring.order = [first]
    for stream in (*streams, fork):
        assert push(served.client, stream, 1, 0).json()["accepted"] == 1
        assert asked(served.client, stream) == asked(served.client, streams[0])
    assert served.has(fork) == [False, True]
    listed = served.client.get("/v1/streams").json()
    assert listed["object"] == "list" and {each["id"] for each in listed["data"]} == {*streams, fork}
    times = [each["created"] for each in listed["data"]]
    assert times == sorted(times)
    state = served.client.get(f"/v1/streams/{fork}/state").content
    assert served.client.put(f"/v1/streams/{streams[0]}/state", content=state).json()["frames"] == 1
    for stream in (*streams, fork):
        assert served.client.delete(f"/v1/streams/{stream}").json()["deleted"]
        error_of(served.client.get(f"/v1/streams/{stream}"), 404)


def test_events_come_one_by_one(served: Served) -> None:
    stream = opened(served.client)
    push(served.client, stream, 1, 0)
    body = {"question": "word", "max_tokens": 8, "stream": True}
    with served.client.stream("POST", f"/v1/streams/{stream}/ask", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]" and json.loads(events[-2])["answer"] == asked(served.client, stream)
    assert len(events) > 3
    served.client.delete(f"/v1/streams/{stream}")


def test_errors_and_other_calls_are_those_of_a_replica(served: Served) -> None:
    error_of(served.client.get("/v1/nothing"), 404)
    error_of(served.client.get("/v1/streams/..%2f..%2fetc"), 404)
    error_of(served.client.get(f"/v1/streams/{'x' * 500}"), 404)
    error_of(
        served.client.post("/v1/streams", content=b"{", headers={"content-type": "application/json"}), 400
    )
    error_of(served.client.get("/v1/streams", headers={"host": "evil.example"}), 403)
    error_of(served.client.post("/v1/streams", json={}, headers={"origin": "http://evil.example"}), 403)
    response = served.client.get("/v1/models")
    assert response.json()["data"][0]["id"] == "tiny"
    assert len(response.headers.get_list("date")) == 1
    assert "<html" in served.client.get("/").text
    assert served.client.get("/ready").json() == {"status": "ready", "model": "tiny", "replicas": 2}
    assert served.client.get("/health").status_code == 200


def test_counts_have_the_name_of_their_replica(served: Served) -> None:
    text = served.client.get("/metrics").text
    names = {line.split('replica="')[1].split('"')[0] for line in text.splitlines() if "replica=" in line}
    assert names == {replica.socket.stem for replica in served.replicas}
    assert text.count("# TYPE infinitevl_streams gauge") == 1


def test_nobody_but_the_ingress_chooses_ids(served: Served) -> None:
    chosen = new_id()
    stream = served.client.post("/v1/streams", json={}, headers={CHOSEN_ID: chosen}).json()["id"]
    assert is_id(stream) and stream != chosen
    served.client.delete(f"/v1/streams/{stream}")
    assert passed_on([(b"X-InfiniteVL-Stream-Id", b"x"), (b"a", b"b")]) == [(b"a", b"b")]
    assert passed_on([(b"connection", b"close, X-Secret"), (b"x-secret", b"1")]) == []


def test_calls_go_to_the_replica_of_the_stream_that_they_name() -> None:
    def stream_of(path: str, query: str = "", method: str = "GET", kind: str = "http") -> str | None:
        scope = {"type": kind, "path": path, "query_string": query.encode(), "headers": [], "method": method}
        return call_of(scope).stream

    one = new_id()
    fork = new_id(one)
    assert root_of(fork) == root_of(one) == one and is_id(fork) and not is_id(f"{fork}/x")
    assert stream_of(f"/v1/streams/{one}/ask") == one
    assert stream_of(f"/v1/streams/{fork}") == fork
    assert stream_of("/v1/events", f"stream={one}", kind="websocket") == one
    assert stream_of("/v1/realtime", f"session_id={fork.replace('stream_', 'sess_')}") == fork
    assert is_id(stream_of("/v1/realtime", "model=tiny", kind="websocket"))
    assert is_id(stream_of("/v1/streams", method="POST")) and is_id(stream_of("/v1/streams/", method="POST"))
    for path, query in (
        ("/v1/streams", ""),
        ("/v1/chat/completions", ""),
        ("/", ""),
        ("/v1/streams/x", "stream=%ff"),
    ):
        assert stream_of(path, query) is None


def test_a_body_over_the_limit_is_refused_and_one_in_pieces_passes(tmp_path: Path) -> None:
    with replicas_behind_one_address(tmp_path, limits=Limits(body_bytes=100_000)) as served:
        stream = opened(served.client)
        picture, headers = png(1), {"content-type": "image/png"}
        pieces = (picture[at : at + 100] for at in range(0, len(picture), 100))
        address = f"/v1/streams/{stream}/frames"
        assert served.client.post(address, content=pieces, headers=headers).json()["accepted"] == 1
        error_of(served.client.post(address, content=b"x" * 100_001, headers=headers), 413)
        uncounted = iter((b"x" * 99_999, b"xx"))
        error_of(served.client.post(address, content=uncounted, headers=headers), 413)


def test_an_answer_ends_when_its_client_goes_away(tmp_path: Path) -> None:
    with replicas_behind_one_address(tmp_path, endless_engine) as served:
        stream = opened(served.client)
        push(served.client, stream, 1, 0)
        answering = served.replicas[0].context.worker.answering
        body = {"question": "word", "max_tokens": 8000, "stream": True}
        with served.client.stream("POST", f"/v1/streams/{stream}/ask", json=body) as response:
            next(response.iter_lines())
            assert answering.growing
        until(lambda: not answering.growing)


@pytest.mark.parametrize("who", ["replica", "ingress"])
def test_those_who_listen_hold_up_no_end(tmp_path: Path, who: str) -> None:
    headers, ends = {"accept": "text/event-stream"}, contextlib.ExitStack()
    with ends, httpx.Client(timeout=60) as client:
        served = ends.enter_context(replicas_behind_one_address(tmp_path))
        stream = opened(served.client)
        with client.stream("GET", f"{served.url}/v1/streams/{stream}/events", headers=headers) as response:
            lines, began = response.iter_lines(), time.monotonic()
            assert next(lines) == ": events"
            if who == "ingress":
                ending = threading.Thread(target=ends.close)
            else:
                (holder,) = (each for each in served.replicas if stream in each.context.worker.streams)
                ending = threading.Thread(target=lambda: asyncio.run(holder.end()))
            ending.start()
            assert list(lines) == [""]
        ending.join(30)
        assert time.monotonic() - began < 8


def test_a_replica_is_told_when_one_who_listens_goes_away(served: Served) -> None:
    stream = opened(served.client)
    (holder,) = (each for each in served.replicas if stream in each.context.worker.streams)
    log = holder.context.rules.events
    headers = {"accept": "text/event-stream"}
    with served.client.stream("GET", f"/v1/streams/{stream}/events", headers=headers) as response:
        assert next(response.iter_lines()) == ": events"
        until(lambda: log.num_listeners("local") == 1, 5)
    until(lambda: log.num_listeners("local") == 0, 5)


def test_events_of_all_streams_are_not_those_of_one_replica(served: Served) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(served.url.replace("http", "ws") + "/v1/events")
    assert json.loads(refused.value.response.body)["error"]["param"] == "stream"


def test_streams_of_a_replica_that_ends_go_on_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress, "_REMEMBERED", 0.1)
    monkeypatch.setattr(ingress, "_PATIENCE", 3.0)
    monkeypatch.setattr(waiting, "_EVERY", 0.2)
    with replicas_behind_one_address(tmp_path) as served:
        stream, unasked = opened(served.client), opened(served.client)
        push(served.client, stream, 1, 0)
        answer = asked(served.client, stream)
        served.ring.order.reverse()  # the ring changes while the old replica lives: it hands over
        until(lambda: asked(served.client, stream) == answer and served.has(stream) == [False, True])
        asyncio.run(served.replicas[1].end())
        served.ring.order.reverse()
        assert asked(served.client, stream) == answer
        until(lambda: served.has(unasked) == [True, False])  # nobody asked for it
        asyncio.run(served.replicas[0].end())
        assert sockets(tmp_path / "run") == []
        response = served.client.get("/ready")
        error_of(response, 503)
        assert response.headers["retry-after"]


# ------ WebSockets


async def _echo(socket: WebSocket) -> None:
    if socket.query_params.get("refuse"):
        from starlette.responses import JSONResponse

        await socket.send_denial_response(JSONResponse({"error": "no"}, 401))
        return
    await socket.accept("realtime" if "realtime" in socket.scope["subprotocols"] else None)
    await socket.send_text(json.dumps([socket.headers.get("authorization"), socket.headers["host"]]))
    try:
        while True:
            message = await socket.receive()
            if message.get("bytes"):
                await socket.send_bytes(message["bytes"][::-1])
            elif message["text"] == "end":
                await socket.close(4001, "as you say")
            else:
                await socket.send_text(message["text"])
    except (WebSocketDisconnect, KeyError):
        heard.append(message["code"])


heard: list[int] = []


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that passes WebSockets on to one that echoes."""
    path = tmp_path_factory.mktemp("echo") / "sock"
    inner = uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=[WebSocketRoute("/{any:path}", _echo)]), uds=str(path), log_level="error"
        )
    )
    thread = threading.Thread(target=inner.run, daemon=True)
    thread.start()
    until(lambda: inner.started)

    async def outer(scope, receive, send) -> None:
        if scope["type"] == "websocket":
            await forward_socket(scope, receive, send, path, passed_on(scope["headers"]))

    with listening(outer) as url:
        yield url.replace("http", "ws")
    inner.should_exit = True
    thread.join(10)


def test_a_websocket_passes_with_its_headers_messages_and_close_codes(echo: str) -> None:
    with connect(
        f"{echo}/v1/realtime?x=%20y",
        additional_headers={"authorization": "Bearer a key"},
        subprotocols=["realtime"],
        max_size=None,
    ) as socket:
        assert socket.subprotocol == "realtime"
        assert json.loads(socket.recv()) == ["Bearer a key", echo.removeprefix("ws://")]
        socket.send("grüße")
        assert socket.recv() == "grüße"
        socket.send(bytes(range(256)) * 8192)
        assert socket.recv() == (bytes(range(256)) * 8192)[::-1]
        socket.send("end")
        with pytest.raises(ConnectionClosed) as ended:
            socket.recv()
    assert ended.value.rcvd is not None and (ended.value.rcvd.code, ended.value.rcvd.reason) == (
        4001,
        "as you say",
    )
    with connect(f"{echo}/") as socket:
        socket.recv()
        socket.close(4002)
    until(lambda: 4002 in heard)


def test_a_websocket_that_is_refused_has_the_answer_of_the_server(echo: str) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(f"{echo}/?refuse=1"):
        pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"") == {"error": "no"}


def test_a_realtime_session_is_found_again_and_moves_with_its_stream(tmp_path: Path) -> None:
    with replicas_behind_one_address(tmp_path) as served:
        address = served.url.replace("http", "ws") + "/v1/realtime"
        with connect(address) as talk:
            session = json.loads(talk.recv())["session"]["id"]
            stream = session.replace("sess_", "stream_")
            assert served.has(stream) == [True, False]
            assert push(served.client, stream, 1, 0).json()["accepted"] == 1
            served.ring.order.reverse()
            path = Path(asyncio.run(_placed(served.ring, stream)))
            assert path == served.replicas[1].socket and served.has(stream) == [False, True]
            with pytest.raises(ConnectionClosed) as ended:
                while True:
                    talk.recv(10)
            assert ended.value.rcvd is not None and ended.value.rcvd.code == 1012
        with connect(f"{address}?session_id={session}") as talk:
            assert json.loads(talk.recv())["session"]["id"] == session
        with pytest.raises(InvalidStatus) as refused, connect(f"{address}?session_id=sess_x"):
            pass
        assert refused.value.response.status_code == 404


async def _placed(ring: Turned, stream: str) -> Path:
    while True:
        with contextlib.suppress(Unreachable):
            return await ring.place(stream)


# ------ the command


@pytest.mark.parametrize(
    "options, said",
    [
        ({"state_dir": None}, "--state-dir"),
        ({"device": "cuda:1"}, "its own GPU"),
        ({"model": "/nowhere"}, "no folder /nowhere"),
    ],
)
def test_what_each_replica_would_fail_at_is_said_before_any_starts(
    options: dict, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infinitevl.server.replicas.serving.check_ray", lambda: None)
    given = {"model": None, "device": "cpu", "state_dir": str(tmp_path), **options}
    started = ServeOptions(replicas=2, state_dir=given.pop("state_dir"))
    with pytest.raises(InfiniteVLError, match=said):
        run_serve(started, **given, dtype="auto", quantization="none")


def test_equal_shares_of_a_machine() -> None:
    assert Plan.of(2, 16, 2) == Plan(2, 8, 1.0)
    assert Plan.of(4, 2, 1) == Plan(4, 1, 0.25)
    assert Plan.of(3, 64, 8) == Plan(3, 21, 1.0)
    assert Plan.of(3, 6, 1).num_gpus * 3 <= 1
