"""A file is complete or absent, whatever goes wrong while it is written."""

import os
import subprocess
import sys

import pytest

from infinitevl.errors import CheckpointError, InfiniteVLError
from infinitevl.files import atomic_write

# What a full disk does, without filling one: no file of the process may grow beyond 4096 bytes.
FULL_DISK = """
import resource, signal, sys, torch
from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write
from infinitevl.state import StreamState
from tests.support import tiny_config
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

def save_state(path):
    StreamState.allocate(tiny_config().text_config).save(path, "mark")

def write_text(path):
    with atomic_write(path) as part:
        part.write_text("x" * 10_000)

def save_torch(path):
    with atomic_write(path) as part:
        torch.save({{"weights": torch.zeros(10_000)}}, part)

try:
    {writer}(sys.argv[1])
except InfiniteVLError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("writer", ["save_state", "write_text"])
def test_a_full_disk_keeps_the_older_file_and_leaves_nothing_behind(tmp_path, writer):
    path = tmp_path / "file"
    path.write_text("older")
    code = FULL_DISK.format(writer=writer)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"InfiniteVLError could not write {path}"), done.stderr
    assert "File too large" in done.stdout
    assert path.read_text() == "older" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_under_torch_save_is_an_error_of_ours(tmp_path):
    path = tmp_path / "file"
    path.write_text("older")
    code = FULL_DISK.format(writer="save_torch")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"InfiniteVLError could not write {path}: the disk is full"), done.stderr
    assert path.read_text() == "older" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "file") as part:
            part.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_our_own_errors_and_an_interrupt_pass_as_they_are(tmp_path):
    for error in (CheckpointError("ours"), KeyboardInterrupt(), ValueError("a bug"), RuntimeError("another")):
        with pytest.raises(type(error)) as raised, atomic_write(tmp_path / "file") as part:
            part.write_text("half")
            raise error
        assert raised.value is error and os.listdir(tmp_path) == []


def test_a_folder_in_the_place_of_a_file_is_named_as_one(tmp_path):
    with pytest.raises(InfiniteVLError, match="it is a folder"), atomic_write(tmp_path) as part:
        part.write_text("x")
    assert not list(tmp_path.parent.glob("*.part"))


def test_a_folder_that_is_not_there_is_an_error_that_says_so(tmp_path):
    with pytest.raises(InfiniteVLError, match="No such file"), atomic_write(tmp_path / "a" / "b"):
        pass
    with pytest.raises(InfiniteVLError, match="could not write"), atomic_write(tmp_path):
        pass


KILLED = """
import os, sys
from infinitevl.files import atomic_write
with atomic_write(sys.argv[1]) as part:
    part.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "file"
    subprocess.run([sys.executable, "-c", KILLED, path], timeout=120)
    assert len(os.listdir(tmp_path)) == 1
    with atomic_write(tmp_path / "another") as part:
        part.write_text("x")
    assert len(os.listdir(tmp_path)) == 2  # of another file, which it does not concern
    with atomic_write(path) as part:
        part.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == ["another", "file"] and path.read_text() == "whole"


def test_what_a_live_save_is_writing_is_left_alone(tmp_path):
    with atomic_write(tmp_path / "file") as first:
        first.write_text("first")
        with atomic_write(tmp_path / "file") as second:
            second.write_text("second")
        assert first.exists()
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "first"


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("older")
    for name, place in (("link", "disk/file"), ("new", "disk/not yet there")):
        (tmp_path / name).symlink_to(place)
        with atomic_write(tmp_path / name) as part:
            assert part.parent == tmp_path / "disk"
            part.write_text("newer")
        assert (tmp_path / name).is_symlink() and (tmp_path / place).read_text() == "newer"
    assert sorted(os.listdir(tmp_path / "disk")) == ["file", "not yet there"]


@pytest.mark.parametrize("name", ["/dev/null/x", "z" * 256, "missing/x", "a\0b", "file/x", "", "/dev/null"])
def test_places_where_nothing_can_be_written_are_told(tmp_path, name):
    (tmp_path / "file").write_text("older")
    with pytest.raises(InfiniteVLError, match="could not write"), atomic_write(tmp_path / name) as part:
        part.write_text("x")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["z" * 255, "\u00e4" * 127])
def test_the_longest_names_that_a_file_system_has_are_written(tmp_path, name):
    for text in ("older", "newer"):
        with atomic_write(tmp_path / name) as part:
            part.write_text(text)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "newer"


def test_the_reason_is_told_where_not_even_the_temporary_file_can_be_removed(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(InfiniteVLError, match="Read-only file system"), atomic_write(tmp_path / "x") as part:
        part.write_text("x")
