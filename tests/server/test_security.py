"""Who is let in, and what no body may do."""

import json
import socket
import time

import pytest

from infinitevl.errors import InputError
from infinitevl.server.jobs import StopText
from infinitevl.server.run import check_host, check_port
from infinitevl.server.security import is_loopback, parse_keys
from infinitevl.server.settings import Limits
from tests.server.serving import Running, error_of, opened, running

CHAT = "/v1/chat/completions"


def test_every_path_answers_in_openais_shape(server: Running) -> None:
    client = server.client
    assert error_of(client.get("/nowhere"), 404)["type"] == "not_found_error"
    assert error_of(client.get(CHAT), 405)
    assert error_of(client.post(CHAT, content=b"{", headers={"content-type": "application/json"}), 400)
    assert error_of(client.post(CHAT, content=b"\xff\xfe"), 400)
    assert error_of(client.post(CHAT, json=[1]), 400)
    assert error_of(client.post(CHAT, json={}), 400)["param"] in ("model", "messages")
    assert error_of(client.post("/v1/streams", json={"queue_size": 0}), 400)["param"] == "queue_size"
    assert error_of(client.post("/v1/streams", json={"mode": "video"}), 400)["param"] == "mode"
    assert error_of(client.post("/v1/streams", json={"colour": 1}), 400)["param"] == "colour"
    deep = "[" * 100_000
    assert error_of(client.post(CHAT, content=deep, headers={"content-type": "application/json"}), 400)


def test_operation_says_how_it_is(server: Running) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json()["model"] == "tiny"
    assert "infinitevl_slots 5.0" in server.client.get("/metrics").text
    assert server.client.get("/docs").status_code == 200
    assert "/v1/streams/{stream_id}/ask" in server.client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "127.0.0.1.evil.example"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
    ],
)
def test_without_keys_pages_of_others_are_not_answered(server: Running, headers: dict[str, str]) -> None:
    assert error_of(server.client.get("/v1/models", headers=headers), 403)


def test_without_keys_the_own_page_is_answered(server: Running) -> None:
    for headers in ({"origin": server.url}, {"host": "localhost"}, {"host": "[::1]:8000"}):
        assert server.client.get("/v1/models", headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not() -> None:
    with running(limits=Limits(body_bytes=10_000)) as server:
        stream = opened(server.client)
        path, headers = f"/v1/streams/{stream}/frames", {"content-type": "image/png"}
        assert error_of(server.client.post(path, content=b"x" * 20_000, headers=headers), 413)
        pieces = (b"x" * 1000 for _ in range(20))
        assert error_of(server.client.post(path, content=pieces, headers=headers), 413)
        text = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x" * 20_000}]}).encode()
        pieces = (text[start : start + 1000] for start in range(0, len(text), 1000))
        assert error_of(
            server.client.post(CHAT, content=pieces, headers={"content-type": "application/json"}), 413
        )


def test_a_body_that_does_not_end_is_given_up() -> None:
    with running(limits=Limits(body_seconds=0.3)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
            started = time.monotonic()
            answer = connection.recv(4096)
            assert b" 408 " in answer and time.monotonic() - started < 5
        assert server.client.get("/health").status_code == 200


def test_too_long_a_prompt_is_refused() -> None:
    with running(limits=Limits(prompt_tokens=50, question_letters=20)) as server:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "word " * 100}]}
        assert error_of(server.client.post(CHAT, json=body), 400)["code"] == "context_length_exceeded"
        ask = {"question": "word " * 100}
        stream = opened(server.client)
        assert error_of(server.client.post(f"/v1/streams/{stream}/ask", json=ask), 400)["param"] == "question"


def test_without_keys_only_loopback_is_listened_on() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert is_loopback(host)
        check_host(host, ())
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(InputError, match="API key"):
            check_host(host, ())
        check_host(host, ("a-long-key",))


def test_keys_come_one_a_line() -> None:
    assert parse_keys("# ours\nfirst-key\n\nsecond-key,third-key\n") == (
        "first-key",
        "second-key",
        "third-key",
    )
    for text in ("short", "with a blank in it", "schlüssel-lang"):
        with pytest.raises(InputError):
            parse_keys(text)


@pytest.mark.parametrize(
    ("pieces", "stops", "wanted"),
    [
        (["hello ", "world"], ["world"], "hello "),
        (["hel", "lo wo", "rld more"], ["lo w"], "hel"),
        (["ab", "ab", "c"], ["abc"], "ab"),
        (["aaa"], ["b"], "aaa"),
        (["ab"], ["abc"], "ab"),
        (["one two"], ["two", "one"], ""),
        (["text"], [], "text"),
    ],
)
def test_text_is_cut_before_a_stop_string(pieces: list[str], stops: list[str], wanted: str) -> None:
    stop, shown = StopText(stops), ""
    for piece in pieces:
        shown += stop.push(piece)
    assert shown + stop.finish() == wanted


def test_a_taken_port_is_told_before_a_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be used: .* --port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_a_host_that_is_not_of_this_machine_is_told() -> None:
    with pytest.raises(InputError, match=r"8000 of 192\.0\.2\.1 cannot be used"):
        check_port("192.0.2.1", 8000)
