"""Events on their way: server-sent, over WebSockets, by webhook."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from infinitevl.errors import InputError
from infinitevl.processing.fetching.post import check_address, post
from infinitevl.server.app import create_app
from infinitevl.server.events import Listener
from infinitevl.server.run import EndingServer
from infinitevl.server.settings import Limits, Retries, ServerSettings
from infinitevl.server.webhooks import Webhook
from tests.server.serving import Running, error_of, opened, push, running, tiny_engine, until
from tests.server.watching import (
    add_rule,
    after,
    answered_by,
    events_of,
    receiving,
    replying,
    rule_of,
    show,
    yes_at,
)

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
FAST = Retries(first=0.01, factor=1.5, longest=0.05, attempts=4, timeout=0.5)


# ------ server-sent events


def sse(client: httpx.Client, stream: str, count: int, headers: dict | None = None, **params) -> list[dict]:
    """Listen until so many events have come: id and event of each."""
    found, headers = [], {"accept": "text/event-stream", **(headers or {})}
    address = f"/v1/streams/{stream}/events"
    with client.stream("GET", address, headers=headers, params=params) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("id: "):
                found.append({"id": line[4:]})
            elif line.startswith("data: "):
                assert json.loads(line[6:])["id"] == found[-1]["id"]
                found[-1] = json.loads(line[6:])
            elif not line and len(found) == count:
                break
    return found


def listening(server: Running, count: int = 1) -> None:
    until(lambda: len(server.context.rules.events._listeners) == count)


def test_events_are_sent_as_they_come_and_again_after_a_break() -> None:
    with running() as own:
        answered_by(own, yes_at(1, 3, 5))
        stream, heard = opened(own.client), []
        add_rule(own.client, stream)
        thread = threading.Thread(target=lambda: heard.extend(sse(own.client, stream, 2)))
        thread.start()
        listening(own)
        show(own, stream, 1, 5)
        thread.join(20)
        kept = events_of(own.client, stream, 3)
        assert heard == kept[:2]
        assert sse(own.client, stream, 1, {"last-event-id": kept[1]["id"]}) == kept[2:]
        assert sse(own.client, stream, 2, after=kept[0]["id"]) == kept[1:]
        assert sse(own.client, stream, 3, after="") == kept
        listening(own, 0)


def test_a_quiet_connection_is_kept_open_by_comments(monkeypatch) -> None:
    monkeypatch.setattr("infinitevl.server.rule_calls._HEARTBEAT", 0.05)
    with running() as own:
        stream = opened(own.client)
        headers = {"accept": "text/event-stream"}
        with own.client.stream("GET", f"/v1/streams/{stream}/events", headers=headers) as response:
            lines = response.iter_lines()
            assert [next(lines) for _ in range(5)] == [": events", "", ": nothing new", "", ": nothing new"]


def test_a_connection_ends_with_its_stream_and_there_are_not_too_many() -> None:
    with running(limits=Limits(listeners_per_key=1)) as own:
        stream = opened(own.client)
        headers, address = {"accept": "text/event-stream"}, f"/v1/streams/{stream}/events"
        with own.client.stream("GET", address, headers=headers) as response:
            lines = response.iter_lines()
            assert next(lines) == ": events"
            assert error_of(own.client.get(address, headers=headers), 429)["code"] == "busy"
            own.client.delete(f"/v1/streams/{stream}")
            assert list(lines) == [""]


def test_a_server_that_ends_does_not_wait_for_those_who_listen() -> None:
    with server_of_the_command() as (server, url), httpx.Client(base_url=url, timeout=60) as client:
        stream = opened(client)
        headers = {"accept": "text/event-stream"}
        with client.stream("GET", f"/v1/streams/{stream}/events", headers=headers) as response:
            lines = response.iter_lines()
            assert next(lines) == ": events"
            began = time.monotonic()
            server.should_exit = True
            assert list(lines) == [""]
    assert time.monotonic() - began < 20, "it waited for its patience to end"


@contextlib.contextmanager
def server_of_the_command():
    """The server of the command, with half a minute of patience."""
    app = create_app(tiny_engine(), ServerSettings(model="tiny", secret=b"a secret"))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=30)
    server = EndingServer(config, app.state.context.rules.events.end_listening)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield server, f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.join(40)
    listening.close()


def test_a_listener_that_is_too_far_behind_is_told_to_come_again() -> None:
    listener = Listener("owner", None, asyncio.Queue(3))
    for number in range(5):
        listener.put({"id": str(number)})
    assert listener.is_behind
    assert [listener.queue.get_nowait() for _ in range(3)] == [{"id": "1"}, {"id": "2"}, None]


# ------ WebSockets


def socket_of(server: Running, query: str = "", **kwargs):
    return connect(server.url.replace("http://", "ws://") + f"/v1/events{query}", **kwargs)


def test_a_socket_gets_the_events_of_all_streams_of_a_key_or_of_one() -> None:
    keys = ("first-key", "second-key")
    with running(keys=keys) as own, own.client_of(keys[0]) as one, own.client_of(keys[1]) as two:
        answered_by(own, yes_at(1))
        streams = [opened(one), opened(one), opened(two)]
        for client, stream in zip((one, one, two), streams, strict=True):
            add_rule(client, stream)
        header = {"authorization": f"Bearer {keys[0]}"}
        with (
            socket_of(own, additional_headers=header) as whole,
            socket_of(own, f"?stream={streams[1]}", additional_headers=header) as single,
        ):
            listening(own, 2)
            whole.send("anything")
            for client, stream in zip((two, one, one), reversed(streams), strict=True):
                push(client, stream, 1, 0.0)
                if client is one:
                    events_of(one, stream, 1)
            got = [json.loads(whole.recv(20)) for _ in range(2)]
            assert [event["stream"] for event in got] == [streams[1], streams[0]]
            assert json.loads(single.recv(20)) == got[0] == events_of(one, streams[1], 1)[0]
            one.delete(f"/v1/streams/{streams[1]}")
            with pytest.raises(ConnectionClosed) as closed:
                single.recv(20)
            assert closed.value.rcvd.code == 1001
        listening(own, 0)
        for refused in ("", f"?stream={streams[0]}"):
            with pytest.raises(InvalidStatus) as failed, socket_of(own, refused):
                pass
            assert failed.value.response.status_code == 401
        with pytest.raises(InvalidStatus) as failed:
            socket_of(own, f"?stream={streams[2]}", additional_headers=header)
        assert failed.value.response.status_code == 404


def test_a_browser_shows_its_key_as_a_protocol_and_a_strange_page_is_refused() -> None:
    with running(keys=("first-key",)) as own:
        offered = ["realtime", "openai-insecure-api-key.first-key"]
        with socket_of(own, subprotocols=offered) as socket:
            assert socket.subprotocol == "realtime"
    with running() as own, pytest.raises(InvalidStatus) as failed:
        socket_of(own, origin="http://elsewhere.example")
    assert failed.value.response.status_code == 403


def test_a_socket_that_comes_back_gets_what_it_missed() -> None:
    with running() as own:
        answered_by(own, yes_at(1, 3))
        stream = opened(own.client)
        add_rule(own.client, stream)
        show(own, stream, 1, 3)
        first, second = events_of(own.client, stream, 2)
        with socket_of(own, f"?stream={stream}&after={first['id']}") as socket:
            assert json.loads(socket.recv(20)) == second


# ------ webhooks


def watched(server: Running, url: str, **hook) -> str:
    """A stream with a rule whose webhook this is."""
    stream = opened(server.client)
    add_rule(server.client, stream, webhook={"url": url, **hook})
    return stream


def test_a_webhook_gets_each_event_signed_and_in_order() -> None:
    with (
        running(allow_private=True, retries=FAST) as own,
        receiving(after(2, replying(500), replying(204))) as hook,
    ):
        answered_by(own, yes_at(1, 3, 5))
        stream = watched(own, hook.url, secret=SECRET)
        show(own, stream, 1, 5)
        kept = events_of(own.client, stream, 3)
        until(lambda: len(hook.requests) == 5)
        ids = [headers["webhook-id"] for headers, _ in hook.requests]
        assert ids == [kept[0]["id"]] * 3 + [kept[1]["id"], kept[2]["id"]]
        for headers, body in hook.requests:
            assert json.loads(body) == next(e for e in kept if e["id"] == headers["webhook-id"])
            assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            digest = hmac.new(bytes(range(32)), signed, hashlib.sha256).digest()
            assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
        until(lambda: 'infinitevl_webhooks_total{taken="yes"} 3.0' in own.client.get("/metrics").text)


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    """Its secret, message and signature are those of the Standard Webhooks specification's libraries."""
    hook = Webhook("https://example.com", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = hook.headers({"id": "msg_p5jXN8AQM9LWM0D4loKWxJek"}, b'{"test": 2432232314}', 1614265330)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("reply", [replying(302, location="/elsewhere"), replying(404), replying(500)])
def test_what_is_never_taken_is_given_up_and_counted(reply) -> None:
    with running(allow_private=True, retries=FAST) as own, receiving(reply) as hook:
        answered_by(own, yes_at(1))
        stream = watched(own, hook.url)
        show(own, stream, 1, 1)
        until(lambda: 'infinitevl_webhooks_total{taken="no"} 1.0' in own.client.get("/metrics").text)
        assert len(hook.requests) == FAST.attempts
        assert all("webhook-signature" not in headers for headers, _ in hook.requests)


def test_a_receiver_that_wants_no_more_gets_an_event_once() -> None:
    with running(allow_private=True, retries=FAST) as own, receiving(replying(410)) as hook:
        answered_by(own, yes_at(1))
        show(own, watched(own, hook.url), 1, 1)
        until(lambda: 'infinitevl_webhooks_total{taken="no"} 1.0' in own.client.get("/metrics").text)
        assert len(hook.requests) == 1


def test_a_receiver_that_hangs_holds_up_neither_frames_nor_other_receivers() -> None:
    release = threading.Event()

    def hang(receiver, handler) -> None:
        release.wait(20)

    with running(allow_private=True, retries=FAST) as own, receiving(hang) as slow, receiving() as quick:
        answered_by(own, yes_at(1, 3))
        hanging, other = watched(own, slow.url), watched(own, quick.url)
        began = time.monotonic()
        show(own, hanging, 1, 3)
        show(own, other, 1, 3)
        until(lambda: len(quick.requests) == 2)
        assert time.monotonic() - began < 10 and len(slow.requests) >= 1
        own.client.delete(f"/v1/streams/{hanging}")
        release.set()
        until(lambda: not own.context.rules.webhooks._lines)


def test_what_was_not_taken_is_sent_after_a_restart(tmp_path: Path) -> None:
    slow = Retries(first=60.0, timeout=0.5)
    with receiving(after(1, replying(503), replying(204))) as hook:
        with running(allow_private=True, retries=slow, state_dir=tmp_path) as own:
            answered_by(own, yes_at(1, 3))
            stream = watched(own, hook.url, secret=SECRET)
            show(own, stream, 1, 3)
            kept = events_of(own.client, stream, 2)
            until(lambda: len(hook.requests) == 1)
        with running(allow_private=True, retries=slow, state_dir=tmp_path) as own:
            until(lambda: len(hook.requests) == 3)
            assert [json.loads(body) for _, body in hook.requests] == [kept[0], *kept]
            file = tmp_path / "rules" / f"{stream}.json"
            until(lambda: json.loads(file.read_text())[0]["undelivered"] == [])


def test_secrets_are_never_shown() -> None:
    with running(allow_private=True) as own, receiving() as hook:
        stream = opened(own.client)
        url = hook.url.replace("://", "://user:hunter2@") + "?token=hunter3"
        shown = add_rule(own.client, stream, webhook={"url": url, "secret": SECRET})
        assert shown["webhook"] == hook.url.replace("://", "://***@") + "?***"
        assert rule_of(own.client, stream)["webhook"] == shown["webhook"]
        body = {"question": "x", "every": 1, "webhook": {"url": "http://user:hunter2@[::1/?hunter3"}}
        response = own.client.post(f"/v1/streams/{stream}/rules", json=body)
        assert "hunter" not in error_of(response, 400)["message"]


@pytest.mark.parametrize("secret", ["", "secret", "whsec_", "whsec_!!!", "whsec_YWJj", "whsec_" + "A" * 100])
def test_a_secret_that_receivers_could_not_check_is_refused(server: Running, secret: str) -> None:
    body = {"question": "x", "every": 1, "webhook": {"url": "http://1.1.1.1/", "secret": secret}}
    response = server.client.post(f"/v1/streams/{opened(server.client)}/rules", json=body)
    error = error_of(response, 400)
    assert error["param"] == "webhook.secret" and "AAA" not in error["message"]


REFUSED = """
    http://127.0.0.1/ http://127.1/ http://2130706433/ http://0x7f000001/ http://017700000001/
    http://localhost/ http://localhost:8000/v1/streams http://[::1]/ http://[::]/ http://0.0.0.0/ http://0/
    http://10.0.0.1/ http://172.16.0.1/ http://192.168.1.1/ http://169.254.169.254/latest/meta-data
    http://100.64.0.1/ http://[fe80::1]/ http://[fc00::1]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/
    http://[64:ff9b::7f00:1]/ http://[2002:7f00:1::]/ http://224.0.0.1/ http://255.255.255.255/
    http://192.0.2.1/ http://198.18.0.1/ http://240.0.0.1/ http://user@127.0.0.1/ http://1.1.1.1@127.0.0.1/
    http://127.0.0.1%2f@1.1.1.1:x/ file:///etc/passwd ftp://1.1.1.1/
    gopher://127.0.0.1/ javascript:alert(1) //127.0.0.1/ 127.0.0.1 http:/// http://[::1 http://127.0.0.1:99999/
    http://.../ http://nothing.invalid/ data:text/plain,x http://①②⑦.⓪.⓪.①/ http://127。0。0。1/
""".split()


@pytest.mark.parametrize("url", REFUSED)
def test_a_webhook_reaches_only_public_addresses(server: Running, url: str) -> None:
    with pytest.raises(InputError):
        post(url, b"{}", {}, timeout=5)
    with pytest.raises(InputError):
        check_address(url)


def test_the_address_of_a_webhook_is_checked_when_it_is_given(server: Running) -> None:
    stream = opened(server.client)
    for url in (
        "http://127.0.0.1/",
        "http://nothing.invalid/",
        "no address",
        "http://[::1]:8000/",
        "http://a b/",
    ):
        body = {"question": "x", "every": 1, "webhook": {"url": url}}
        response = server.client.post(f"/v1/streams/{stream}/rules", json=body)
        assert error_of(response, 400)["param"] == "webhook.url", url
    assert server.client.get(f"/v1/streams/{stream}/rules").json()["data"] == []


def test_a_name_that_leads_home_later_is_refused_when_it_is_used(monkeypatch) -> None:
    """As in DNS rebinding: public when the rule was made, private when the event is sent."""
    with running(retries=FAST) as own, receiving() as hook:
        answered_by(own, yes_at(1))
        port = int(hook.url.rsplit(":", 1)[1].split("/")[0])
        home = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", port))]
        answers = [public]
        real = socket.getaddrinfo

        def look_up(host, *args, **kwargs):
            if host != "rebinding.example":
                return real(host, *args, **kwargs)
            return answers.pop() if answers else home

        monkeypatch.setattr("infinitevl.processing.fetching.fetch.socket.getaddrinfo", look_up)
        stream = watched(own, f"http://rebinding.example:{port}/hook")
        show(own, stream, 1, 1)
        until(lambda: 'infinitevl_webhooks_total{taken="no"} 1.0' in own.client.get("/metrics").text)
        assert not hook.requests
