"""Every example of docs/serving.md runs as it stands there, with the address of a server of the test."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.source import ROOT
from tests.server.serving import Running, png, running

PAGE = (ROOT / "docs" / "serving.md").read_text()
HERE = "http://127.0.0.1:8000"


def examples(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return [example for example in found if HERE in example]


@pytest.fixture(scope="module")
def builtin():
    """A server that answers to the name of the built-in model."""
    with running(model="builtin") as started:
        yield started


def run(words: list[str], folder: Path) -> str:
    (folder / "picture.png").write_bytes(png(1))
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(examples("bash"))))
def test_a_shell_example_runs(builtin: Running, tmp_path: Path, number: int) -> None:
    script = examples("bash")[number].replace(HERE, builtin.url)
    said = run(["bash", "-euc", script.replace("curl -s", "curl --fail-with-body -s")], tmp_path)
    assert '"error"' not in said and '"object"' in said


@pytest.mark.parametrize("number", range(len(examples("python"))))
def test_a_python_example_runs(builtin: Running, tmp_path: Path, number: int) -> None:
    program = examples("python")[number].replace(HERE, builtin.url)
    assert run([sys.executable, "-c", program], tmp_path).strip()


@pytest.mark.parametrize("number", range(len(examples("js"))))
def test_a_javascript_example_runs(builtin: Running, tmp_path: Path, number: int) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs node")
    program = tmp_path / "example.mjs"
    program.write_text(examples("js")[number].replace(HERE, builtin.url))
    assert run(["node", "--no-warnings", "--experimental-websocket", str(program)], tmp_path).strip()


def test_the_clients_example_runs(builtin: Running, tmp_path: Path) -> None:
    program = (ROOT / "examples" / "a_client.py").read_text().replace(HERE, builtin.url)
    said = run([sys.executable, "-c", program, "What is it?", "picture.png", "picture.png"], tmp_path)
    assert "2 frames seen" in said


def test_there_are_examples_of_every_kind() -> None:
    assert len(examples("bash")) >= 2 and len(examples("python")) >= 3 and len(examples("js")) >= 2


def test_a_stream_has_the_fields_of_the_page(builtin: Running) -> None:
    block = next(found for found in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL) if '"stream"' in found)
    given = builtin.client.post("/v1/streams", json={}).json()
    assert set(json.loads(block)) == set(given)


def test_every_call_of_the_server_is_on_the_page(builtin: Running) -> None:
    paths = builtin.client.get("/openapi.json").json()["paths"]
    missing = [
        path
        for path in paths
        if path.replace("{stream_id}", "{id}") not in PAGE and path != "/v1/models/{name}"
    ]
    assert not missing
