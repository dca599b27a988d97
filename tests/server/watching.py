"""Streams with rules whose answers a test gives, and receivers of webhooks."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from tests.server.serving import Running, push, until


def answered_by(server: Running, answer: Callable[[int], str]) -> None:
    """Let a function of the frame's number, from 1, answer all rules in place of the model's words."""
    asking = server.context.worker.answering.rules
    take = asking.on_answer
    asking.on_answer = lambda rule, seen, text: take(rule, seen, answer(seen.frame))


def yes_at(*frames: int) -> Callable[[int], str]:
    """Yes after these frames."""
    return lambda frame: "Yes." if frame in frames else "no"


def add_rule(client: httpx.Client, stream: str, **body: Any) -> dict[str, Any]:
    """A rule, as the server shows it."""
    response = client.post(f"/v1/streams/{stream}/rules", json={"question": "word", "every": 1, **body})
    assert response.status_code == 200, response.text
    return response.json()


def rule_of(client: httpx.Client, stream: str, number: int = 0) -> dict[str, Any]:
    """A rule of a stream, as it is now."""
    return client.get(f"/v1/streams/{stream}/rules").json()["data"][number]


def show(server: Running, stream: str, first: int, last: int) -> None:
    """Send frames with these numbers, from 1, a second apart; every rule answers before the next one."""
    rules = server.context.worker.answering.rules.rules
    for number in range(first, last + 1):
        assert push(server.client, stream, number, number - 1.0).status_code == 200
        until(lambda at=number - 1.0: all(rule.last_time == at for rule in rules[stream]))


def events_of(client: httpx.Client, stream: str, count: int, **params: Any) -> list[dict[str, Any]]:
    """The events of a stream, once there are so many."""

    def found() -> list[dict[str, Any]]:
        return client.get(f"/v1/streams/{stream}/events", params=params).json()["data"]

    until(lambda: len(found()) >= count)
    assert len(found()) == count
    return found()


class Receiver:
    """A receiver of webhooks: `reply` says what becomes of each request."""

    def __init__(self, reply: Callable[["Receiver", BaseHTTPRequestHandler], None]) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.reply, self.url = reply, ""


def replying(status: int, **headers: str) -> Callable[[Receiver, BaseHTTPRequestHandler], None]:
    """Reply with a status."""

    def reply(receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return reply


def after(count: int, first: Any, then: Any) -> Callable[[Receiver, BaseHTTPRequestHandler], None]:
    """One reply to the first requests, another one to the others."""
    return lambda receiver, handler: (first if len(receiver.requests) <= count else then)(receiver, handler)


@contextlib.contextmanager
def receiving(
    reply: Callable[[Receiver, BaseHTTPRequestHandler], None] | None = None,
) -> Iterator[Receiver]:
    """A receiver on loopback."""
    receiver = Receiver(reply or replying(204))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requests.append(({name.lower(): text for name, text in self.headers.items()}, body))
            with contextlib.suppress(OSError):
                receiver.reply(receiver, self)

        do_GET = do_POST

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
