"""How long calls wait on a server with nothing else to do: for a thread, never for a network's timer."""

import socket
import statistics
import threading
import time
from collections.abc import Callable

import httpx
import uvicorn

from infinitevl.server.app import create_app
from infinitevl.server.settings import ServerSettings
from tests.server.serving import opened, push, running, tiny_engine, until

# A delayed acknowledgement of TCP costs 40 ms, each call; a call of an idle server takes 1 to 3 ms.
DELAYED = 0.030


def quick_seconds(call: Callable[[], object], times: int) -> float:
    """What the fastest tenth of the calls take: a timer would hold up these too, a busy machine does not."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.quantiles(taken, n=10)[0]


def test_calls_of_an_idle_server_wait_for_nothing() -> None:
    with running() as server:
        client, stream = server.client, opened(server.client)
        push(client, stream, 0, 0)
        streams: list[str] = []
        assert quick_seconds(lambda: client.get(f"/v1/streams/{stream}"), 200) < DELAYED
        assert quick_seconds(lambda: streams.append(opened(client)), 20) < DELAYED
        assert quick_seconds(lambda: client.delete(f"/v1/streams/{streams.pop()}"), 20) < DELAYED
        assert quick_seconds(lambda: push(client, stream, 1), 20) < DELAYED


def test_a_served_port_sends_each_part_of_an_answer_at_once() -> None:
    """What `uvicorn.run(host, port)` listens on has no Nagle's algorithm either."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(tiny_engine(), ServerSettings())
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            assert quick_seconds(lambda: client.get("/health"), 50) < DELAYED
    finally:
        server.should_exit = True
        thread.join(30)
