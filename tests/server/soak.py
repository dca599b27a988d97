"""Many clients of all kinds at one server, for some time.

    python -m tests.server.soak --clients 64 --minutes 10

Streams and chats of a very small model, readers that are slow, and clients that leave in the middle of an
answer. There are many more streams than slots, so they are parked in memory and on disk all the time. No
error but 429 may come. Every answer must be that of an engine that does nothing else, all streams must be
read equally often, within a factor, and the server's memory must stay as it is.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import psutil

from infinitevl.engine.chat import ChatSession
from infinitevl.engine.session import StreamSession
from infinitevl.server.run import serve
from infinitevl.server.settings import ServerSettings
from tests.server.process import Process
from tests.server.serving import MODEL, picture, png, tiny_engine, until

NUM_SCRIPTS, NUM_FRAMES, NUM_TOKENS = 6, 5, 12
NUM_SLOTS, STATES_IN_MEMORY = 8, 6
SLOW = 0.03  # seconds between two events that a slow reader takes
WARM = 0.25  # part of the time after which memory is looked at
_PROGRAM = "from tests.server.soak import serve_tiny; serve_tiny()"


def serve_tiny() -> None:
    """Run a server whose streams hardly have room: `serve --port PORT FOLDER`."""
    engine = tiny_engine(num_slots=NUM_SLOTS)
    state_bytes = sum(buffer[0].nbytes for buffer in engine.pool.state.buffers)
    port, folder = int(sys.argv[3]), Path(sys.argv[4])
    memory = STATES_IN_MEMORY * state_bytes
    serve(engine, ServerSettings(model=MODEL, state_dir=folder, park_memory=memory), "127.0.0.1", port)


def messages(script: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"word{script} says the sign " * (5 * script + 1)}]


@cache
def quiet_answers() -> tuple[list[str], list[str]]:
    """Of the streams, and of the chats."""
    engine, streams = tiny_engine(num_slots=3), []
    for script in range(NUM_SCRIPTS):
        with StreamSession.on(engine) as session:
            for number in range(NUM_FRAMES):
                session.observe(picture(10 * script + number), at=float(number))
            streams.append(session.ask("word", max_new_tokens=NUM_TOKENS))
    chats = []
    for script in range(NUM_SCRIPTS):
        with ChatSession.on(engine) as chat:
            chats.append(chat.say(messages(script)[0]["content"], max_new_tokens=NUM_TOKENS))
    return streams, chats


@dataclass
class Soak:
    """What all clients share. frames: that each watcher has had read. errors: what went wrong."""

    url: str
    end: float
    counts: Counter[str] = field(default_factory=Counter)
    frames: Counter[int] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether clients shall stop."""
        return time.monotonic() > self.end or len(self.errors) > 20

    def check(self, given: Any, wanted: Any, what: str) -> None:
        """Note an answer that is another one than the quiet engine's."""
        self.counts[what] += 1
        if given != wanted:
            self.errors.append(f"{what}: {given!r} instead of {wanted!r}")


class Client(threading.Thread):
    """One client: does the same thing over and over, with one script after the other."""

    def __init__(self, soak: Soak, number: int, act: "Callable[[Client, int], None]") -> None:
        super().__init__(daemon=True)
        self.soak, self.number, self.act = soak, number, act
        self.http = httpx.Client(base_url=soak.url, timeout=120)

    def run(self) -> None:
        with self.http:
            script = self.number
            while not self.soak.is_over:
                try:
                    self.act(self, script % NUM_SCRIPTS)
                except Exception as error:
                    self.soak.errors.append(f"{self.act.__name__}: {error!r}")
                script += 1

    def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """A call that is tried again while the server is busy."""
        while True:
            response = self.http.request(method, path, **kwargs)
            if response.status_code != 429:
                response.raise_for_status()
                return response
            self.soak.counts["busy"] += 1
            time.sleep(float(response.headers["retry-after"]))

    def watched(self, script: int, num_frames: int = NUM_FRAMES) -> str:
        """A stream that has seen the frames of a script."""
        stream = self.call("POST", "/v1/streams", json={}).json()["id"]
        for number in range(num_frames):
            self.call(
                "POST",
                f"/v1/streams/{stream}/frames?time={number}&wait=true",
                content=png(10 * script + number),
                headers={"content-type": "image/png"},
            )
            self.soak.frames[self.number] += 1
        return stream


def watch(client: Client, script: int) -> None:
    """A stream: watched, forked, asked, deleted."""
    stream = client.watched(script)
    fork = client.call("POST", f"/v1/streams/{stream}/fork").json()["id"]
    for each in (stream, fork):
        body = {"question": "word", "max_tokens": NUM_TOKENS}
        answer = client.call("POST", f"/v1/streams/{each}/ask", json=body).json()["answer"]
        client.soak.check(answer, quiet_answers()[0][script], "answers of streams")
        client.call("DELETE", f"/v1/streams/{each}")


def chat(client: Client, script: int) -> None:
    """A chat."""
    body = {"model": MODEL, "messages": messages(script), "max_tokens": NUM_TOKENS}
    answer = client.call("POST", "/v1/chat/completions", json=body).json()
    client.soak.check(answer["choices"][0]["message"]["content"], quiet_answers()[1][script], "chats")


def read_slowly(client: Client, script: int) -> None:
    """A chat whose pieces are taken one by one."""
    body = {"model": MODEL, "messages": messages(script), "max_tokens": NUM_TOKENS, "stream": True}
    text = ""
    with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code == 429:
            client.soak.counts["busy"] += 1
            return
        for line in response.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                text += "".join(choice["delta"].get("content") or "" for choice in choices)
                time.sleep(SLOW)
    client.soak.check(text, quiet_answers()[1][script], "slow readers")


def leave(client: Client, script: int) -> None:
    """Go away in the middle of an answer; next time, of a stream's frames."""
    client.soak.counts["left early"] += 1
    body = {"model": MODEL, "messages": messages(script), "max_tokens": 500, "stream": True}
    with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_lines(), None)
    time.sleep(0.2)


KINDS = (watch, chat, watch, watch, read_slowly, watch, leave, watch)


def soak(num_clients: int, seconds: float) -> dict[str, Any]:
    """Let so many clients at a server: what they did; AssertionError where one was not served as promised."""
    quiet_answers()
    with tempfile.TemporaryDirectory() as folder:
        server = Process(folder, program=_PROGRAM)
        memory = psutil.Process(server.process.pid).memory_info
        shared = Soak(server.url, time.monotonic() + seconds)
        clients = [Client(shared, number, KINDS[number % len(KINDS)]) for number in range(num_clients)]
        for client in clients:
            client.start()
        time.sleep(WARM * seconds)
        warm = memory().rss
        for client in clients:
            client.join(seconds + 120)
        assert not any(client.is_alive() for client in clients), "a call was not answered"
        until(lambda: "infinitevl_answers_growing 0.0" in server.client.get("/metrics").text)
        end = memory().rss
        left = server.client.get("/v1/streams").json()["data"]
        assert server.client.get("/health").json() == {"status": "ok", "saving": "ok"}
        text = server.client.get("/metrics").text
        server.end()
        log = server.log()
    watchers = [client.number for client in clients if client.act is watch]
    frames = [shared.frames[number] for number in watchers]
    told = {
        **shared.counts,
        "frames": sum(frames),
        "least and most frames of a client": (min(frames), max(frames)),
        "memory when warm, MB": round(warm / 1e6, 1),
        "memory at the end, MB": round(end / 1e6, 1),
        "errors": len(shared.errors),
    }
    assert not shared.errors, shared.errors[:5]
    assert not left and f"infinitevl_slots_free {NUM_SLOTS}.0" in text, "something is left"
    assert "Traceback" not in log, log[-3000:]
    assert min(frames) * 3 >= max(frames), told
    assert end <= 1.1 * warm, told
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    for name, value in soak(arguments.clients, 60 * arguments.minutes).items():
        print(f"{name:<36} {value}")


if __name__ == "__main__":
    main()
