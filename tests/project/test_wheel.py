"""What a user installs is the wheel: build it, put it into an empty environment, run the demo from there."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.project.source import PACKAGE, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1200)]
LEAST_RIGHT = 0.5


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, away from this checkout and this environment."""
    environment = {
        name: text for name, text in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}
    }
    finished = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"{command}\n{finished.stdout[-4000:]}\n{finished.stderr[-4000:]}"
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a clean copy, so that nothing left over from earlier builds gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment that holds the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    run(folder / "bin/pip", "install", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == ours


def test_the_wheel_answers_right_in_an_empty_environment(installed: Path, tmp_path: Path) -> None:
    origin = run(installed / "python", "-c", "import infinitevl; print(infinitevl.__file__)", cwd=tmp_path)
    assert str(installed.parent) in origin
    lines = [
        json.loads(line)
        for line in run(installed / "infinitevl", "demo", "--json", cwd=tmp_path).splitlines()
    ]
    answers, summary = lines[:-1], lines[-1]
    assert all({"at", "question", "answer", "truth", "right"} <= set(line) for line in answers)
    assert {"frames", "tokens", "seconds", "dropped", "state_bytes"} <= set(summary)
    assert summary["asked"] == len(answers) > 0
    assert summary["right"] == sum(line["right"] for line in answers) >= LEAST_RIGHT * len(answers), answers


def test_the_installed_package_passes_its_dependencies_check(installed: Path, tmp_path: Path) -> None:
    run(installed / "pip", "check", cwd=tmp_path)
