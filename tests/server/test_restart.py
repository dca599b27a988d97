"""What is left after an end, whether it was asked for or not."""

import errno
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from infinitevl.engine.base import Snapshot
from infinitevl.state_file import read_file
from tests.server.kill import kill_while_frames_come
from tests.server.process import Process
from tests.server.serving import asked, error_of, opened, push, running, until


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


def test_the_log_says_how_many_streams_were_found_and_kept(tmp_path: Path, caplog) -> None:
    with caplog.at_level("INFO", "infinitevl.server.keeper"):
        with running(state_dir=tmp_path) as server:
            opened(server.client)
            opened(server.client)
        with running(state_dir=tmp_path):
            pass
    folder = tmp_path / "streams"
    counts = ("0 streams found", "2 of 2 streams are kept", "2 streams found", "2 of 2 streams are kept")
    assert [record.message for record in caplog.records] == [f"{count} in {folder}" for count in counts]


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
        assert error_of(server.client.get(f"/v1/streams/{bad}"), 503)["code"] == "stream_not_open"
    assert file.read_bytes() == b"damaged"


def test_a_full_disk_keeps_the_old_save_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def saving() -> str:
        return server.client.get("/health").json()["saving"]

    def saved_frames() -> int | None:
        return server.client.get(f"/v1/streams/{stream}").json()["saved_frames"]

    with running(state_dir=tmp_path, save_every=0.05) as server:
        stream = opened(server.client)
        push(server.client, stream, 0, 0)
        until(lambda: saved_frames() == 1)
        assert saving() == "ok"
        before = (tmp_path / "streams" / f"{stream}.safetensors").read_bytes()
        with monkeypatch.context() as disk:
            disk.setattr("infinitevl.files.os.fsync", full)
            push(server.client, stream, 1, 1)
            until(lambda: saving() == "failing")
            assert (tmp_path / "streams" / f"{stream}.safetensors").read_bytes() == before
            assert "infinitevl_saves_failed 0.0" not in server.client.get("/metrics").text
            assert asked(server.client, stream)
            refused = server.client.post("/v1/streams", json={})
            assert error_of(refused, 503)["code"] == "disk_full" and refused.headers["retry-after"]
            push(server.client, stream, 2, 2)
            assert saved_frames() == 1
        until(lambda: saved_frames() == 3)
        assert saving() == "ok" and server.client.post("/v1/streams", json={}).status_code == 200
        assert not list(tmp_path.rglob("*.part"))


def test_what_was_forked_or_filled_is_saved_before_others(tmp_path: Path) -> None:
    """Its record alone would bring it back with nothing seen."""
    with running(state_dir=tmp_path, save_every=3600) as server:
        stream = opened(server.client, keep_turns=True, system="short")
        push(server.client, stream, 0, 0)
        fork = server.client.post(f"/v1/streams/{stream}/fork").json()["id"]
        until(lambda: server.client.get(f"/v1/streams/{fork}").json()["saved_frames"] == 1)
        filled = opened(server.client)
        data = server.client.get(f"/v1/streams/{stream}/state").content
        assert server.client.put(f"/v1/streams/{filled}/state", content=data).status_code == 200
        until(lambda: server.client.get(f"/v1/streams/{filled}").json()["saved_frames"] == 1)
        assert server.client.get(f"/v1/streams/{stream}").json()["saved_frames"] is None
        for path in (tmp_path / "streams").glob("*.*"):  # as a kill now would leave it
            (tmp_path / "killed" / "streams").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "killed" / "streams")
    with running(state_dir=tmp_path / "killed") as server:
        for each in (fork, filled):
            found = server.client.get(f"/v1/streams/{each}").json()
            assert (found["frames"], found["keep_turns"], found["system"]) == (1, True, "short")


def test_every_stream_is_saved_in_turn_however_slow_the_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Snapshot.save

    def slow(snapshot: Snapshot, path: Path) -> None:
        time.sleep(0.05)
        save(snapshot, path)

    monkeypatch.setattr(Snapshot, "save", slow)
    with running(state_dir=tmp_path, save_every=0.01) as server:
        streams = [opened(server.client) for _ in range(8)]
        deadline, seen = time.monotonic() + 20, 0
        while not all(each["saved_frames"] for each in server.client.get("/v1/streams").json()["data"]):
            assert time.monotonic() < deadline
            for stream in streams:  # all change all the time
                push(server.client, stream, seen)
            seen += 1


def test_a_deleted_stream_does_not_come_back(tmp_path: Path) -> None:
    with running(state_dir=tmp_path, save_every=0.01) as server:
        for _ in range(5):
            stream = opened(server.client)
            push(server.client, stream, 0)
            assert server.client.delete(f"/v1/streams/{stream}").status_code == 200
            assert not list((tmp_path / "streams").glob(f"{stream}.json"))  # at once, whatever comes next


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_kill_9_every_stream_is_there_as_of_its_last_save(tmp_path: Path) -> None:
    kill_while_frames_come(tmp_path, 5)


def long_answer(server: Process, stream: str, told: list[str]) -> None:
    """Take an answer that grows for some time, piece by piece."""
    body = {
        "question": "What is on the sign?",
        "max_tokens": 400,
        "temperature": 1.9,
        "seed": 1,
        "stream": True,
    }
    with server.client.stream("POST", f"/v1/streams/{stream}/ask", json=body) as response:
        told.extend(line for line in response.iter_lines() if line)


def asks(server: Process, stream: str, cut: int = 0) -> socket.socket:
    """Send a question, but for its last `cut` bytes, and read nothing of the answer."""
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"question": "What is on the sign?", "max_tokens": 50, "stream": true}'
    head = f"POST /v1/streams/{stream}/ask HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body))
    connection.sendall(body[: len(body) - cut])
    return connection


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_twice_lets_answers_end_and_saves_what_was_seen(tmp_path: Path) -> None:
    server = Process("--state-dir", tmp_path, "--save-every", 3600)
    stream, told = opened(server.client), []
    for number in range(3):
        push(server.client, stream, number)
    connection = asks(server, stream)
    answer = threading.Thread(target=long_answer, args=(server, stream, told))
    answer.start()
    until(lambda: told)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert server.end(signal.SIGTERM, 40) in (0, -signal.SIGTERM), server.log()
    answer.join(10)
    connection.close()
    assert told[-1] == "data: [DONE]" and '"finish_reason"' in told[-2]
    assert "Traceback" not in server.log()
    [state] = (tmp_path / "streams").glob("*.safetensors")
    assert read_file(state)[0]["span.num_frames"].item() == 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_ctrl_c_cuts_answers_short_and_saves_what_was_seen(tmp_path: Path) -> None:
    server = Process("--state-dir", tmp_path, "--save-every", 3600)
    stream = opened(server.client)
    push(server.client, stream, 0)
    connection = asks(server, stream, cut=10)  # waits for the rest
    time.sleep(0.2)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    server.end(signal.SIGINT, 10)
    connection.close()
    [state] = (tmp_path / "streams").glob("*.safetensors")
    assert read_file(state)[0]["span.num_frames"].item() == 1
