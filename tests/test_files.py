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
