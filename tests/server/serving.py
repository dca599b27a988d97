"""Servers on a free loopback port, with a tiny model whose every layer matters."""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from infinitevl.engine.engine import Engine
from infinitevl.server.app import create_app
from infinitevl.server.context import Context
from infinitevl.server.settings import ServerSettings
from tests.support import random_frame, tiny_model, tiny_processor

MODEL = "tiny"


@dataclass
class Running:
    """A server that listens, its client, and its parts."""

    url: str
    client: httpx.Client
    context: Context

    def client_of(self, key: str) -> httpx.Client:
        """A client that shows a key."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=60)


def tiny_engine(**kwargs: Any) -> Engine:
    """An engine of the tiny model."""
    return Engine(tiny_model(), tiny_processor(), **{"num_slots": 5, **kwargs})


def endless_engine() -> Engine:
    """An engine whose answers end at their limit alone."""
    engine = tiny_engine()
    engine.answers.stop_ids = engine.answers.stop_ids[:0]
    return engine


@contextlib.contextmanager
def running(engine: Engine | None = None, *, port: int = 0, **settings: Any) -> Iterator[Running]:
    """A server in a thread, until the block ends; then it drains as after SIGTERM."""
    settings = {"model": MODEL, "secret": b"a secret", **settings}
    app = create_app(engine or tiny_engine(), ServerSettings(**settings))
    # asyncio turns Nagle's algorithm off only where the protocol is named; else each answer waits 40 ms
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Running(url, client, app.state.context)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
    assert not thread.is_alive(), "the server did not end"


def until(is_true, seconds: float = 20.0) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def picture(seed: int) -> np.ndarray:
    """A random frame, uint8 [H, W, 3]."""
    return random_frame(seed).permute(1, 2, 0).numpy()


def png(seed: int) -> bytes:
    """A random frame as a file, which holds every byte of it."""
    file = io.BytesIO()
    Image.fromarray(picture(seed)).save(file, "png")
    return file.getvalue()


def push(client: httpx.Client, stream: str, seed: int, at: float | None = None, wait: bool = True):
    """Send one frame: the response."""
    params: dict[str, Any] = {"wait": wait} | ({} if at is None else {"time": at})
    return client.post(
        f"/v1/streams/{stream}/frames",
        params=params,
        content=png(seed),
        headers={"content-type": "image/png"},
    )


def opened(client: httpx.Client, **body: Any) -> str:
    """The id of a new stream."""
    response = client.post("/v1/streams", json=body)
    assert response.status_code == 200, response.text
    return response.json()["id"]


def asked(client: httpx.Client, stream: str, question: str = "word", **body: Any) -> str:
    """The answer to a question."""
    body = {"question": question, "max_tokens": 8, **body}
    response = client.post(f"/v1/streams/{stream}/ask", json=body)
    assert response.status_code == 200, response.text
    return response.json()["answer"]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error in a response, whose status and shape are as they must be."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error
