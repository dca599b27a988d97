"""What is left after an end, whether it was asked for or not."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from infinitevl.engine.loading import load
from infinitevl.engine.session import StreamSession
from tests.project.source import ROOT
from tests.server.serving import asked, opened, picture, png, push, running, until


def test_streams_are_there_again_after_an_end(tmp_path: Path) -> None:
    with running(state_dir=tmp_path) as server:
        streams = [opened(server.client, name=f"number {n}", queue_size=2) for n in range(7)]  # 5 slots
        for number, stream in enumerate(streams[:6]):
            for at in range(number):
                push(server.client, stream, 10 * number + at, at)
        answers = [asked(server.client, stream) for stream in streams[1:6]]
        server.client.delete(f"/v1/streams/{streams[5]}")
    with running(state_dir=tmp_path) as server:
        listed = {each["id"]: each for each in server.client.get("/v1/streams").json()["data"]}
        assert set(listed) == {*streams[:5], streams[6]}
        assert [listed[stream]["frames"] for stream in streams[:5]] == [0, 1, 2, 3, 4]
        assert [listed[stream]["name"] for stream in streams[:2]] == ["number 0", "number 1"]
        assert [asked(server.client, stream) for stream in streams[1:5]] == answers[:4]
        assert push(server.client, streams[3], 1, 1.0).status_code == 400  # its time goes on
        assert push(server.client, streams[3], 1, 2.5).status_code == 200


def test_streams_are_saved_while_they_go_on(tmp_path: Path) -> None:
    with running(state_dir=tmp_path, save_every=0.05) as server:
        stream = opened(server.client)
        push(server.client, stream, 0, 0)
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["saved_frames"] == 1)
        file = tmp_path / "streams" / f"{stream}.safetensors"
        assert file.exists() and (tmp_path / "streams").stat().st_mode & 0o077 == 0
        server.client.delete(f"/v1/streams/{stream}")
        until(lambda: not file.exists())


def test_a_stream_that_cannot_be_read_is_left_where_it_is(tmp_path: Path) -> None:
    with running(state_dir=tmp_path) as server:
        good, bad = opened(server.client), opened(server.client)
        for stream in (good, bad):
            push(server.client, stream, 0, 0)
    file = tmp_path / "streams" / f"{bad}.safetensors"
    file.write_bytes(b"damaged")
    with running(state_dir=tmp_path) as server:
        assert [each["id"] for each in server.client.get("/v1/streams").json()["data"]] == [good]
    assert file.read_bytes() == b"damaged"


class Process:
    """`infinitevl serve` as a user starts it."""

    def __init__(self, state_dir: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["serve", "--port", str(port), "--state-dir", str(state_dir)]
        program = "from infinitevl.cli import main; main()"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        until(self._is_ready, 120)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.process.stderr.read()
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def end(self, how: int) -> int:
        self.process.send_signal(how)
        self.process.communicate(timeout=60)
        return self.process.returncode


def _quiet_answer(num_frames: int) -> str:
    """What the built-in model says of so many frames that nobody interrupted."""
    session = StreamSession(*load())
    for seed in range(num_frames):
        session.observe(picture(seed))
    return session.ask("word", max_new_tokens=8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_kill_9_every_stream_is_there_as_of_its_last_save(tmp_path: Path) -> None:
    process = Process(tmp_path)
    stream = opened(process.client)
    for kills in range(5):
        deadline = time.monotonic() + 2 + kills
        saved = 0
        while time.monotonic() < deadline or not saved:
            number = process.client.get(f"/v1/streams/{stream}").json()["frames"]
            push(process.client, stream, number)
            saved = process.client.get(f"/v1/streams/{stream}").json()["saved_frames"] or 0
        process.end(signal.SIGKILL)
        process = Process(tmp_path)
        found = process.client.get(f"/v1/streams/{stream}").json()
        assert found["frames"] == found["saved_frames"] >= saved > 0
    assert asked(process.client, stream) == _quiet_answer(found["frames"])
    frames = push(process.client, stream, 1) and process.client.get(f"/v1/streams/{stream}").json()["frames"]
    assert process.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    process = Process(tmp_path)
    assert process.client.get(f"/v1/streams/{stream}").json()["frames"] == frames
    response = process.client.post(
        f"/v1/streams/{stream}/frames", content=png(1), headers={"content-type": "image/png"}
    )
    assert response.status_code == 200
    process.end(signal.SIGTERM)
