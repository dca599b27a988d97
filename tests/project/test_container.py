"""The Dockerfile, line by line against the package; images are not built here."""

import fnmatch
import json
import re
import shlex
import socket
import subprocess
import sys
import tomllib

import pytest
from typer.testing import CliRunner

from infinitevl.cli import app
from infinitevl.cli.serve import ServeOptions, run_serve
from infinitevl.errors import InputError
from tests.project.source import ROOT

_TEXT = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
LINES = [line.partition(" ")[::2] for line in _TEXT.splitlines() if line.strip() and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def values(instruction: str) -> list[str]:
    return [rest.strip() for name, rest in LINES if name == instruction]


def test_what_is_copied_exists_and_is_sent_to_docker() -> None:
    patterns = (ROOT / ".dockerignore").read_text().split()
    assert patterns[0] == "*"
    sent = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copied = {source for line in values("COPY") for source in line.split()[:-1]}
    assert copied == sent and all((ROOT / source).exists() for source in copied)
    needed = [PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "infinitevl"]
    assert set(needed) <= copied


def test_what_is_installed_exists() -> None:
    extras = {value for value in values("ARG") if value.startswith("EXTRAS=")}
    assert {extra.removeprefix("EXTRAS=") for extra in extras} <= set(PROJECT["optional-dependencies"])
    installs = [line for line in values("RUN") if line.startswith("pip install")]
    assert len(installs) == 2
    for line in installs:
        words = shlex.split(line)
        assert words[-1] == ".[${EXTRAS}]" and words[words.index("-c") + 1] == "constraints.txt"


def test_every_device_is_a_stage_and_nobody_is_root() -> None:
    stages = [line.split(" AS ")[1] for line in values("FROM") if " AS " in line]
    assert values("FROM")[-1] == "${DEVICE}" and {"cpu", "cuda"} <= set(stages)
    assert values("ARG")[0] == "DEVICE=cpu"
    assert values("USER") == ["infinitevl"]
    version = re.search(r"python:(\d+)\.(\d+)", values("FROM")[0])
    least = PROJECT["requires-python"].removeprefix(">=").split(".")
    assert version is not None and tuple(map(int, version.groups())) >= tuple(map(int, least))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> ServeOptions:
    """What the entry command asks for."""
    given = []
    monkeypatch.setattr(
        sys.modules[run_serve.__module__], "run_serve", lambda options, **model: given.append(options)
    )
    words = json.loads(values("ENTRYPOINT")[0])
    assert words[0] in PROJECT["scripts"]
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    return given[0]


def test_the_server_is_reachable_keeps_its_streams_and_needs_keys(
    started: ServeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("INFINITEVL_API_KEYS", raising=False)
    assert (started.host, [str(started.port)]) == ("0.0.0.0", values("EXPOSE"))
    assert [started.state_dir] == values("VOLUME")
    with pytest.raises(InputError, match="INFINITEVL_API_KEYS"):
        run_serve(started, model=None, device=None, dtype="auto", quantization="none")


def test_the_health_check_tells_a_server_from_none() -> None:
    from tests.server.serving import running

    (check,) = values("HEALTHCHECK")
    words = json.loads(check.partition(" CMD ")[2])
    assert words[0] == "python" and words[1] == "-c"
    program = words[2]
    assert "127.0.0.1:8000/health" in program

    def status(port: int) -> int:
        code = program.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode

    with running(keys=("a-long-secret",)) as server:
        assert status(int(server.url.rpartition(":")[2])) == 0
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        assert status(unheard.getsockname()[1]) != 0


def test_the_page_builds_and_runs_what_the_dockerfile_has() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    arguments = re.findall(r"--build-arg (\w+)=([\w,]+)", page)
    names = {value.split("=")[0] for value in values("ARG")}
    assert arguments and {name for name, _ in arguments} <= names
    for name, value in arguments:
        known = PROJECT["optional-dependencies"] if name == "EXTRAS" else ["cpu", "cuda"]
        assert set(value.split(",")) <= set(known)
    for run in re.findall(r"docker run .*", page):
        assert f"-p {values('EXPOSE')[0]}:{values('EXPOSE')[0]}" in run and "INFINITEVL_API_KEYS=" in run
    assert fnmatch.filter(page.split(), "states:/state")
