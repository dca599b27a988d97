"""Two replicas on Ray Serve: each stream has one, and goes on with another when its replica ends or dies."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from websockets.sync.client import connect

from infinitevl.engine.session import StreamSession
from infinitevl.server.replicas.ingress import create_ingress
from infinitevl.server.replicas.serving import Plan, Replicas, started
from infinitevl.server.settings import ServerSettings
from tests.project.source import ROOT
from tests.server.serving import asked, opened, picture, push, tiny_engine, until
from tests.server.test_ingress import listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
_REPLICA = "ray::ServeReplica"


@dataclass
class Serving:
    """A running server, and the number of its replicas."""

    client: httpx.Client
    replicas: Replicas
    states: Path

    def process_of(self, stream: str) -> psutil.Process:
        """The process of the replica that holds a stream."""
        (found,) = (
            process
            for process in _processes(_REPLICA)
            if any(file.path.endswith(f"/{stream}.lease") for file in process.open_files())
        )
        return found


def _processes(name: str) -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if _is(child, name)]


def _is(process: psutil.Process, name: str) -> bool:
    try:
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith(name)
    except psutil.Error:  # it has just ended
        return False


def _need_ray() -> None:
    if importlib.util.find_spec("ray") is None:  # not imported: what it may do is decided before that
        pytest.skip("needs ray")


def test_the_command_serves_and_saves_when_it_is_told_to_end(tmp_path: Path) -> None:
    _need_ray()
    port = "18567"
    words = ["serve", "--replicas", "2", "--port", port, "--state-dir", str(tmp_path)]
    program = "from infinitevl.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until(lambda: _is_ready(client), 180)
            stream = opened(client)
            push(client, stream, 1, 0)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        assert (tmp_path / "streams" / f"{stream}.safetensors").exists()
    finally:
        process.kill()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").json().get("replicas") == 2
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    _need_ray()
    states = tmp_path_factory.mktemp("states")
    settings = ServerSettings(
        model="tiny", secret=b"a secret", state_dir=states, save_every=0.2, is_replica=True
    )
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(ROOT)  # the replicas make their engine from these tests
    try:
        with (
            started(tiny_engine, settings, Plan(2, 1, 0.0)) as (replicas, ring, folder),
            listening(create_ingress(ring, folder, settings)) as url,
            httpx.Client(base_url=url, timeout=60) as client,
        ):
            yield Serving(client, replicas, states)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def streams(serving: Serving) -> list[str]:
    """Eight streams with as many frames as their number, on both replicas."""
    made = [opened(serving.client) for _ in range(8)]
    for number, stream in enumerate(made):
        for at in range(number + 1):
            push(serving.client, stream, at, at)
    return made


def _quiet_answers(most: int) -> list[str]:
    """What the model says of one frame, of two, and so on, when nobody interrupts it."""
    session, answers = StreamSession.on(tiny_engine()), []
    for seed in range(most):
        session.observe(picture(seed), at=seed)
        answers.append(session.ask("word", max_new_tokens=8))
    return answers


def test_streams_are_spread_and_each_is_answered_by_its_own_replica(
    serving: Serving, streams: list[str]
) -> None:
    held = {stream: serving.process_of(stream).pid for stream in streams}
    assert len(set(held.values())) == 2
    assert [asked(serving.client, stream) for stream in streams] == _quiet_answers(8)
    assert {stream: serving.process_of(stream).pid for stream in streams} == held
    fork = serving.client.post(f"/v1/streams/{streams[3]}/fork").json()["id"]
    assert asked(serving.client, fork) == asked(serving.client, streams[3])
    assert serving.process_of(fork).pid == held[streams[3]]
    serving.client.delete(f"/v1/streams/{fork}")
    listed = serving.client.get("/v1/streams").json()["data"]
    assert {each["id"] for each in listed} == set(streams)
    address = str(serving.client.base_url).replace("http", "ws") + "/v1/realtime"
    with connect(f"{address}?stream={streams[2]}") as talk:
        assert json.loads(talk.recv())["session"]["id"] == streams[2].replace("stream_", "sess_")
    body = {"question": "word", "max_tokens": 8, "stream": True}
    with serving.client.stream("POST", f"/v1/streams/{streams[0]}/ask", json=body) as response:
        assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"


def test_nothing_listens_but_on_loopback(serving: Serving) -> None:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    ends = [end for process in processes for end in process.net_connections("inet") if end.status == "LISTEN"]
    assert ends
    assert {end.laddr.ip.removeprefix("::ffff:") for end in ends} == {"127.0.0.1"}


def test_streams_of_a_replica_that_is_killed_are_there_as_of_their_last_save(
    serving: Serving, streams: list[str]
) -> None:
    answers = _quiet_answers(12)
    until(lambda: all(_frames(serving, stream)[0] == _frames(serving, stream)[1] for stream in streams))
    victim = serving.process_of(streams[0])
    for at in range(1, 4):
        push(serving.client, streams[0], at, at)
    victim.kill()
    frames, saved = _frames(serving, streams[0])
    assert 1 <= saved == frames <= 4
    assert asked(serving.client, streams[0]) == answers[frames - 1]
    assert [asked(serving.client, stream) for stream in streams[1:]] == answers[1:8]
    until(lambda: len(_processes(_REPLICA)) == 2, 60)


def _frames(serving: Serving, stream: str) -> tuple[int, int]:
    told = serving.client.get(f"/v1/streams/{stream}").json()
    return told["frames"], told["saved_frames"]


def test_calls_go_on_while_ray_replaces_its_controller(serving: Serving, streams: list[str]) -> None:
    until(lambda: _is_ready(serving.client), 120)  # one that is still starting is started anew
    before = _processes(_REPLICA)
    (controller,) = _processes("ray::ServeController")
    controller.kill()
    answers = [asked(serving.client, stream) for stream in streams]
    until(lambda: _processes("ray::ServeController"), 60)
    assert [asked(serving.client, stream) for stream in streams] == answers
    assert _processes(_REPLICA) == before


def test_streams_of_replicas_that_end_go_on_with_others_and_lose_nothing(
    serving: Serving, streams: list[str]
) -> None:
    push(serving.client, streams[7], 8, 8)  # not saved yet when its replica ends
    before = {process.pid for process in _processes(_REPLICA)}
    serving.replicas.scale(1)
    assert asked(serving.client, streams[7]) == _quiet_answers(9)[8]
    assert [asked(serving.client, stream) for stream in streams[1:7]] == _quiet_answers(7)[1:]
    until(lambda: len(_processes(_REPLICA)) == 1, 60)
    assert before.isdisjoint(process.pid for process in _processes(_REPLICA))
