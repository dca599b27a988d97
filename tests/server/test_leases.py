"""Leases of streams: one holder at most, whatever servers do and however they end."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infinitevl.errors import InfiniteVLError
from infinitevl.server.leases import Leases, is_held
from tests.project.source import ROOT
from tests.server.serving import asked, error_of, opened, png, push, running, until

ID = f"stream_{'a' * 24}"
SERVERS = st.integers(0, 2)


class ServersOfOneFolder(RuleBasedStateMachine):
    """Three servers, one stream: a number that each save makes one larger, as a state holds all frames."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.servers = [Leases(self.folder) for _ in range(3)]
        self.holder: int | None = None
        self.state, self.saved, self.asked = 0, 0, False
        self.file = self.folder / "state"
        self.file.write_text("0")

    def teardown(self) -> None:
        for server in self.servers:
            server.release_all()
        shutil.rmtree(self.folder)

    @rule(server=SERVERS)
    def claim(self, server: int) -> None:
        was_free = self.holder is None
        assert self.servers[server].claim(ID) == (was_free or self.holder == server)
        if was_free:
            self.holder, self.asked = server, False
            self.state = int(self.file.read_text())
            assert self.state == self.saved  # nothing that was saved is lost, nothing comes back

    @rule(server=SERVERS)
    def save(self, server: int) -> None:
        if self.servers[server].holds(ID):
            assert server == self.holder
            self.state += 1
            self.saved = self.state
            self.file.write_text(str(self.state))

    @rule(server=SERVERS)
    def ask(self, server: int) -> None:
        self.servers[server].ask(ID)
        self.asked = True

    @precondition(lambda self: self.holder is not None)
    @rule()
    def release(self) -> None:
        self.servers[self.holder].release(ID)
        self.holder = None

    @rule(server=SERVERS)
    def die(self, server: int) -> None:
        """As kill -9: the system closes the files of a process, and nothing else happens."""
        for file in self.servers[server]._files.values():
            os.close(file)
        self.servers[server] = Leases(self.folder)
        self.holder = None if self.holder == server else self.holder

    @precondition(lambda self: self.holder is not None)
    @rule()
    def delete(self) -> None:
        self.servers[self.holder].forget(ID)
        self.holder = None

    @invariant()
    def one_holds_it_and_is_told_who_asks(self) -> None:
        held = [number for number, server in enumerate(self.servers) if server.holds(ID)]
        assert held == ([] if self.holder is None else [self.holder])
        assert is_held(self.folder, ID) == bool(held)
        told = [number for number, server in enumerate(self.servers) if server.wanted()]
        assert told == (held if self.asked else [])


TestServersOfOneFolder = ServersOfOneFolder.TestCase
TestServersOfOneFolder.settings = settings(max_examples=30, stateful_step_count=30)

_HOLD = """
import sys
from pathlib import Path
from infinitevl.server.leases import Leases
print(Leases(Path(sys.argv[1])).claim(sys.argv[2]), flush=True)
sys.stdin.read()
"""


def test_a_stopped_process_keeps_its_streams_and_a_killed_one_does_not(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path), ID],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    mine = Leases(tmp_path)
    os.kill(other.pid, signal.SIGSTOP)
    assert not mine.claim(ID) and not mine.holds(ID) and is_held(tmp_path, ID)
    other.kill()
    other.wait()
    assert mine.claim(ID) and mine.holds(ID)
    other.communicate()


def test_whoever_has_locked_a_removed_file_locks_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, open_file, removed = Leases(tmp_path), os.open, []

    def open_and_lose(path, *rest):
        file = open_file(path, *rest)
        if not removed:
            removed.append(path)
            os.unlink(path)
        return file

    monkeypatch.setattr(os, "open", open_and_lose)
    assert leases.claim(ID) and removed
    assert leases.holds(ID) and not Leases(tmp_path).claim(ID)


def test_who_lost_a_lease_does_not_hold_it_and_cannot_claim_it(tmp_path: Path) -> None:
    first, second = Leases(tmp_path), Leases(tmp_path)
    assert first.claim(ID)
    (tmp_path / f"{ID}.lease").unlink()
    assert not first.holds(ID) and not first.claim(ID)
    assert second.claim(ID)
    first.forget(ID)  # does not remove the file of the second
    assert second.holds(ID)


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InfiniteVLError, match="cannot be used"):
        Leases(tmp_path / "file")
    leases = Leases(tmp_path)
    (tmp_path / f"{ID}.lease").mkdir()
    with pytest.raises(InfiniteVLError, match="cannot be locked"):
        leases.claim(ID)


# ------ servers


def test_a_second_server_leaves_the_streams_of_the_first_alone(tmp_path: Path) -> None:
    with running(state_dir=tmp_path) as first:
        stream = opened(first.client)
        push(first.client, stream, 0, 0)
        answer = asked(first.client, stream)
        with running(state_dir=tmp_path) as second:
            assert second.client.get("/v1/streams").json()["data"] == []
            error_of(second.client.get(f"/v1/streams/{stream}"), 503)
            other = opened(second.client)
            error_of(first.client.get(f"/v1/streams/{other}"), 503)
        push(first.client, stream, 1, 1)
    with running(state_dir=tmp_path) as third:
        assert {each["id"] for each in third.client.get("/v1/streams").json()["data"]} == {stream, other}
        assert third.client.get(f"/v1/streams/{stream}").json()["frames"] == 2
        assert answer


def test_a_stream_is_handed_over_with_all_that_was_accepted(tmp_path: Path) -> None:
    """The frames that wait are read and saved first; the new server answers as the old one would."""
    with running(state_dir=tmp_path) as quiet:
        twin = opened(quiet.client)
        for seed in range(6):
            push(quiet.client, twin, seed, seed)
        expected = asked(quiet.client, twin)
    with running(state_dir=tmp_path) as old, running(state_dir=tmp_path, is_replica=True) as new:
        stream = opened(old.client, queue_size=8)
        observe = old.context.worker.engine.observe

        def slowly(batch) -> None:  # so that frames still wait when the stream is asked for
            time.sleep(0.2)
            observe(batch)

        old.context.worker.engine.observe = slowly
        for seed in range(6):
            assert push(old.client, stream, seed, seed, wait=False).json()["dropped"] == 0
        adopt(new, stream)
        assert new.client.get(f"/v1/streams/{stream}").json()["frames"] == 6
        assert asked(new.client, stream) == expected
        error_of(push(old.client, stream, 7, 7), 503)
        assert stream not in {each["id"] for each in old.client.get("/v1/streams").json()["data"]}
        push(new.client, stream, 7, 7)
        adopt(old, stream)  # and back
        assert old.client.get(f"/v1/streams/{stream}").json()["frames"] == 7
        assert old.client.delete(f"/v1/streams/{stream}").status_code == 200
        error_of(new.client.get(f"/v1/streams/{stream}"), 404)
        until(lambda: not list((tmp_path / "streams").glob(f"{stream}*")))


def adopt(server, stream: str) -> None:
    """Ask for a stream until it is there, as a replica does."""
    import asyncio

    def is_there() -> bool:
        try:
            asyncio.run(server.context.registry.adopt(stream))
        except Exception as error:
            assert getattr(error, "code", None) == "stream_moving"
        return stream in server.context.worker.streams

    until(is_there)


def test_a_server_whose_lease_was_lost_saves_no_more_and_says_so(tmp_path: Path) -> None:
    with running(state_dir=tmp_path, save_every=0.05) as server:
        stream = opened(server.client)
        push(server.client, stream, 0, 0)
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["saved_frames"] == 1)
        (tmp_path / "streams" / f"{stream}.lease").unlink()
        file = tmp_path / "streams" / f"{stream}.safetensors"
        saved = file.read_bytes()
        server.client.post(
            f"/v1/streams/{stream}/frames", content=png(1), headers={"content-type": "image/png"}
        )
        until(lambda: server.client.get(f"/v1/streams/{stream}").status_code == 503)
    assert file.read_bytes() == saved


def test_a_second_server_on_a_folder_leaves_the_streams_of_the_first_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(state_dir=tmp_path) as first:
        opened(first.client)
        with running(state_dir=tmp_path) as second:
            assert second.client.get("/v1/streams").json()["data"] == []
    assert "1 streams there are held by another server, and left to it" in caplog.text
