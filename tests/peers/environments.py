"""Environments of other people's clients, made once in a folder of the user's cache by pip or npm."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NO_NETWORK = "no network for the packages of other clients"
NO_NODE = "needs node and npm"
_UNREACHABLE = (
    "No matching distribution",
    "onnection",
    "Could not fetch",
    "timed out",
    "ENOTFOUND",
    "EAI_AGAIN",
)


def python_with(package: str, version: str) -> Path:
    """The interpreter of an environment that holds one package.

    Skips the test that asks where no package registry answers.
    """
    folder = _folder(f"{package}-{version}-{sys.version_info.major}.{sys.version_info.minor}")
    python = folder / "bin" / "python"
    if not _is_made(folder):
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", f"{package}=={version}"])
        _note_made(folder)
    return python


def node_with(package: str, version: str) -> Path:
    """A folder in which node finds one package; skips as `python_with` does, and where there is no node."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(NO_NODE)
    folder = _folder(f"node-{package}-{version}")
    if not _is_made(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        settings = ["--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"]
        _run(["npm", "install", *settings, f"{package}@{version}"])
        _note_made(folder)
    return folder


def _folder(name: str) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "infinitevl-tests" / name


def _is_made(folder: Path) -> bool:
    return (folder / "made").is_file()


def _note_made(folder: Path) -> None:
    """Written last: an environment that was interrupted is made anew."""
    (folder / "made").touch()


def _run(call: list[str]) -> None:
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode and any(words in done.stderr for words in _UNREACHABLE):
        pytest.skip(NO_NETWORK)
    assert done.returncode == 0, f"{call}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
