"""More streams than slots, than memory and than disk: who lies where, and that nothing is lost."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from infinitevl.engine.slots import Parked
from infinitevl.server import parking
from infinitevl.server.turns import FRAMES_PER_TURN, Turns
from tests.server.serving import Running, asked, error_of, opened, push, running, tiny_engine

NUM_STREAMS = 8


@pytest.fixture(scope="module")
def state_bytes() -> int:
    return sum(buffer[0].nbytes for buffer in tiny_engine(num_slots=3).pool.state.buffers)


def watch(server: Running, streams: list[str], frames: range) -> None:
    for number in frames:
        for index, stream in enumerate(streams):
            assert push(server.client, stream, 10 * index + number, number).status_code == 200


def places(server: Running) -> list[str]:
    """Where the streams lie once nothing moves any more."""
    server.context.worker.call(lambda: server.context.worker.parking._collect(wait=True)).result()
    listed = server.client.get("/v1/streams").json()["data"]
    return sorted("slot" if each["resident"] else each["parked"] for each in listed)


def test_streams_come_back_from_disk_as_they_were(tmp_path: Path, state_bytes: int) -> None:
    """Three slots and room for two in memory: the others lie on disk, and answer as if they never had."""
    with running(tiny_engine(num_slots=20)) as quiet:
        streams = [opened(quiet.client) for _ in range(NUM_STREAMS)]
        watch(quiet, streams, range(3))
        wanted = [asked(quiet.client, stream) for stream in streams]
        assert places(quiet) == ["slot"] * NUM_STREAMS
    limits = {"park_memory": 2 * state_bytes, "park_disk": 100 * state_bytes, "state_dir": tmp_path}
    with running(tiny_engine(num_slots=3), **limits) as server:
        streams = [opened(server.client) for _ in range(NUM_STREAMS)]
        watch(server, streams, range(3))
        assert places(server) == ["disk"] * 3 + ["memory"] * 2 + ["slot"] * 3
        text = server.client.get("/metrics").text
        assert "infinitevl_streams_on_disk 3.0" in text and "infinitevl_streams_parked 5.0" in text
        assert [asked(server.client, stream) for stream in streams] == wanted
    kinds = {path.suffix for path in (tmp_path / "streams").iterdir() if path.is_file()}
    assert kinds == {".json", ".safetensors", ".lease"}  # parked streams leave no files of their own
    with running(tiny_engine(num_slots=3), **limits) as server:
        assert [asked(server.client, stream) for stream in streams] == wanted


def test_streams_for_which_there_is_no_room_are_refused(tmp_path: Path, state_bytes: int) -> None:
    limits = {"park_memory": 2 * state_bytes, "park_disk": state_bytes, "state_dir": tmp_path}
    with running(tiny_engine(num_slots=4), **limits) as server:
        streams = [opened(server.client) for _ in range(5)]  # two slots, two in memory, one on disk
        response = server.client.post("/v1/streams", json={})
        assert "--park-memory" in error_of(response, 429)["message"] and response.headers["retry-after"]
        push(server.client, streams[0], 0)
        assert server.client.post(f"/v1/streams/{streams[0]}/fork").status_code == 429
        server.client.delete(f"/v1/streams/{streams[1]}")
        assert server.client.post("/v1/streams", json={}).status_code == 200


def test_a_disk_that_cannot_be_written_loses_no_stream(
    tmp_path: Path, state_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(parked: Parked, folder: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Parked, "move_to_disk", full)
    monkeypatch.setattr(parking, "_PAUSE", 0.5)
    limits = {"park_memory": state_bytes, "park_disk": 100 * state_bytes, "state_dir": tmp_path}
    with running(tiny_engine(num_slots=3), **limits) as server:
        streams = [opened(server.client) for _ in range(4)]
        watch(server, streams, range(1))
        while server.client.post("/v1/streams", json={}).status_code == 200:
            pass  # until the disk was tried
        listed = places(server)
        assert "disk" not in listed and listed.count("memory") == len(listed) - 3
        watch(server, streams, range(1, 3))
        assert all(asked(server.client, stream) for stream in streams)
        monkeypatch.undo()
        time.sleep(0.6)
        watch(server, streams, range(3, 5))  # it is tried again
        assert places(server).count("memory") == 1


def test_a_stream_that_is_asked_for_while_it_moves_to_disk_is_whole(
    tmp_path: Path, state_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, move = threading.Event(), Parked.move_to_disk

    def slow(parked: Parked, folder: Path) -> None:
        goes_on.wait(10)
        move(parked, folder)

    monkeypatch.setattr(Parked, "move_to_disk", slow)
    limits = {"park_memory": 0, "park_disk": 100 * state_bytes, "state_dir": tmp_path}
    with running(tiny_engine(num_slots=3), **limits) as server:
        streams = [opened(server.client) for _ in range(4)]  # the first is on its way now
        threading.Timer(0.2, goes_on.set).start()
        watch(server, streams[:1], range(2))
        with running(tiny_engine(num_slots=3)) as quiet:
            stream = opened(quiet.client)
            watch(quiet, [stream], range(2))
            assert asked(server.client, streams[0]) == asked(quiet.client, stream)


# ------ turns


def stand_ins(count: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(name=number, last_read=0, turn_frames=0, session=SimpleNamespace(is_parked=False))
        for number in range(count)
    ]


@pytest.mark.parametrize(("num_streams", "num_slots"), [(3, 2), (20, 6), (7, 7), (50, 2)])
def test_streams_that_always_have_frames_are_read_equally_often(num_streams: int, num_slots: int) -> None:
    turns, streams = Turns(), stand_ins(num_streams)
    counts = dict.fromkeys(range(num_streams), 0)
    rounds = FRAMES_PER_TURN * num_streams * 10
    longest, since = 0, dict.fromkeys(range(num_streams), 0)
    for _ in range(rounds):
        chosen = {stream.name for stream in turns.choose(streams, num_slots)}
        assert len(chosen) == min(num_slots, num_streams)
        for name in counts:
            counts[name] += name in chosen
            since[name] = 0 if name in chosen else since[name] + 1
            longest = max(longest, since[name])
    assert max(counts.values()) - min(counts.values()) <= FRAMES_PER_TURN
    assert longest <= FRAMES_PER_TURN * -(-num_streams // num_slots)


def test_a_stream_that_was_quiet_comes_before_those_that_were_not() -> None:
    turns, streams = Turns(), stand_ins(5)
    quiet, busy = streams[0], streams[1:]
    for _ in range(FRAMES_PER_TURN):
        turns.choose(busy, 2)
    assert quiet in turns.choose(streams, 2)


def test_a_turn_goes_on_while_there_are_frames() -> None:
    turns, streams = Turns(), stand_ins(4)
    first = [[stream.name for stream in turns.choose(streams, 2)] for _ in range(2 * FRAMES_PER_TURN)]
    assert first == [[0, 1]] * FRAMES_PER_TURN + [[2, 3]] * FRAMES_PER_TURN
