"""Other people's clients, each in an environment of its own: what they show is what this server said."""

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.peers.environments import node_with, python_with
from tests.server.serving import MODEL, Running, png, running, until
from tests.server.test_chat import data_uri
from tests.server.test_documented import HERE, examples

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(600)]

CLIENTS = Path(__file__).with_name("clients")
QUESTION, LENGTH = "word says the sign", 16  # litellm asks for no response that is shorter
FIRST_PORT = 11434  # of those that live-vlm-webui asks
LITELLM, OPENAI_FOR_NODE, LIVE_VLM_WEBUI = "1.110.2", "7.59.0", "0.4.0"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


def said(server: Running, *parts: dict) -> str:
    """What the server says without a client."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": list(parts) or QUESTION}],
        "max_tokens": LENGTH,
    }
    response = server.client.post("/v1/chat/completions", json=body)
    return response.json()["choices"][0]["message"]["content"]


def shown(server: Running) -> str:
    return said(
        server,
        {"type": "image_url", "image_url": {"url": data_uri(1)}},
        {"type": "text", "text": QUESTION},
    )


def outcome(call: list[str], **settings: str) -> dict:
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=180, check=False, env=os.environ | settings
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def arguments(server: Running) -> list[str]:
    return [f"{server.url}/v1", MODEL, QUESTION, data_uri(1)]


def test_litellm_chats_and_responds(server: Running) -> None:
    python = python_with("litellm", LITELLM)
    call = [str(python), str(CLIENTS / "with_litellm.py"), *arguments(server)]
    found = outcome(call, LITELLM_LOCAL_MODEL_COST_MAP="True")
    text = said(server)
    assert [found[name] for name in ("whole", "streamed", "response")] == [text] * 3
    assert found["shown"] == shown(server) != text
    assert found["tokens"] == found["logprobs"] == LENGTH


@pytest.fixture(scope="module")
def node() -> Path:
    """A folder with npm's openai."""
    return node_with("openai", OPENAI_FOR_NODE)


def test_npms_openai_chats_and_responds(server: Running, node: Path) -> None:
    program = node / "with_openai.mjs"  # imports are looked up where a file lies
    program.write_text((CLIENTS / "with_openai.mjs").read_text())
    found = outcome(["node", str(program), *arguments(server)])
    text = said(server)
    names = ("whole", "streamed", "response", "deltas", "final")
    assert [found[name] for name in names] == [text] * len(names)
    assert found["models"] == [MODEL] and found["shown"] == shown(server) != text
    assert found["usage"]["completion_tokens"] == LENGTH
    assert (found["events"][0], found["events"][-1]) == ("response.created", "response.incomplete")
    assert found["error"] == {"status": 400, "param": "previous_response_id", "code": "unsupported_parameter"}


@pytest.mark.parametrize("number", range(len(examples("javascript"))))
def test_an_example_in_javascript_runs(node: Path, number: int) -> None:
    with running(model="builtin") as builtin:
        program = node / f"example-{number}.mjs"
        program.write_text(examples("javascript")[number].replace(HERE, builtin.url))
        (node / "picture.png").write_bytes(png(1))
        done = subprocess.run(
            ["node", program.name], cwd=node, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def live_vlm_webui(python: Path, server: Running, log: Path) -> Iterator[str]:
    """The page of live-vlm-webui, which asks about every fifth frame: its address."""
    port = free_port()
    call = [str(python.with_name("live-vlm-webui")), "--no-ssl", "--host", "127.0.0.1", "--port", str(port)]
    call += ["--api-base", f"{server.url}/v1", "--model", MODEL, "--process-every", "5"]
    with log.open("w") as file:
        page = subprocess.Popen(call, stdout=file, stderr=file, cwd=log.parent)
    try:
        until(lambda: is_there(f"http://127.0.0.1:{port}"), 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        page.terminate()
        page.wait(30)


def is_there(address: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(address).status_code == 200
    return False


def test_live_vlm_webui_watches_through_this_server(server: Running, tmp_path: Path) -> None:
    python = python_with("live-vlm-webui", LIVE_VLM_WEBUI)
    with live_vlm_webui(python, server, tmp_path / "log") as page:
        call = [str(python), str(CLIENTS / "with_live_vlm_webui.py"), page]
        done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n{(tmp_path / 'log').read_text()[-4000:]}"
    models, answer = (json.loads(line) for line in done.stdout.splitlines())
    assert models == {"models": [{"id": MODEL, "name": MODEL, "current": True}]}
    assert not answer["text"].startswith("Error") and answer["metrics"]["total_inferences"] >= 1


def test_live_vlm_webui_finds_a_server_where_it_looks() -> None:
    python = python_with("live-vlm-webui", LIVE_VLM_WEBUI)
    code = "import asyncio, json; from live_vlm_webui import server as s; "
    code += "print(json.dumps(asyncio.run(s.detect_local_service_and_model())))"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(running(port=FIRST_PORT))
        except OSError:
            pytest.skip(f"needs port {FIRST_PORT}")
        done = subprocess.run(
            [str(python), "-c", code], capture_output=True, text=True, timeout=120, check=True
        )
    assert json.loads(done.stdout) == [f"http://localhost:{FIRST_PORT}/v1", MODEL]
