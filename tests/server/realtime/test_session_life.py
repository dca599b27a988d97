"""Cancelling, forgetting, frames as messages, and what becomes of a session without its client."""

import contextlib
import json
import signal
import threading
import time
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as open_socket

from infinitevl.server.settings import Limits
from tests.server.realtime.talking import (
    EVENTS,
    Quiet,
    answered,
    begun,
    client_of,
    connect,
    image,
    received,
    refused,
    say,
    text,
    until_type,
)
from tests.server.serving import MODEL, Running, endless_engine, png, push, running, until
from tests.server.test_restart import Process


@pytest.fixture(scope="module")
def endless():
    """A server whose answers end at their limit alone."""
    with running(endless_engine()) as server:
        yield server


def closed_with(connection: Any) -> tuple[int, str]:
    """Read to the end: code and reason."""
    with pytest.raises(ConnectionClosed) as ended:
        while True:
            connection.recv_bytes()
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code, ended.value.rcvd.reason


def denied(
    server: Running, path: str, headers: dict[str, str] | None = None, **options: Any
) -> dict[str, Any]:
    """The error and status of a WebSocket that is not opened."""
    address = server.url.replace("http", "ws") + path
    with pytest.raises(InvalidStatus) as refusal:
        open_socket(address, additional_headers=headers, **options)
    response = refusal.value.response
    return json.loads(response.body)["error"] | {"status": response.status_code}


def test_a_cancelled_answer_is_not_remembered_and_its_question_waits_again(endless: Running) -> None:
    quiet = Quiet()
    quiet.session.engine.answers.stop_ids = quiet.session.engine.answers.stop_ids[:0]
    with connect(endless) as connection:
        begun(connection)
        say(connection, image(0, 0.0))
        item = say(connection, text("word"))
        quiet.show(0, 0.0)
        connection.response.create(response={"max_output_tokens": "inf"})
        events = until_type(connection, "response.output_text.delta")
        connection.response.create(event_id="second")
        connection.response.cancel(response_id="resp_other", event_id="wrong")
        connection.conversation.item.delete(item_id=item.id, event_id="used")
        codes = []
        while len(codes) < 3:
            event = received(connection)
            codes += [event.error.code] if event.type == "error" else []
        assert codes == [
            "conversation_already_has_active_response",
            "response_cancel_not_active",
            "item_in_use",
        ]
        connection.response.cancel(response_id=events[0].response.id)
        done = until_type(connection, "response.done")[-1].response
        assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
        assert done.output[0].status == "incomplete" and done.output[0].content[0].text
        assert done.usage.output_tokens > 0
        connection.response.cancel()
        refused(connection, "response_cancel_not_active")
        connection.conversation.item.delete(item_id=done.output[0].id)
        until_type(connection, "conversation.item.deleted")
        say(connection, text("two words"))
        assert answered(connection) == quiet.ask("word\ntwo words")


def test_items_that_wait_can_be_deleted_and_those_that_were_read_cannot(server: Running) -> None:
    quiet = Quiet()
    with connect(server) as connection:
        begun(connection)
        kept, deleted = say(connection, text("word")), say(connection, text("never"))
        connection.conversation.item.retrieve(item_id=deleted.id)
        assert until_type(connection, "conversation.item.retrieved")[-1].item == deleted
        connection.conversation.item.delete(item_id=deleted.id)
        assert until_type(connection, "conversation.item.deleted")[-1].item_id == deleted.id
        for call in (connection.conversation.item.retrieve, connection.conversation.item.delete):
            call(item_id=deleted.id)
            assert refused(connection, "item_not_found").param == "item_id"
        assert answered(connection) == quiet.ask("word")
        connection.conversation.item.delete(item_id=kept.id)
        assert "state of fixed size" in refused(connection, "item_already_read").message
        connection.conversation.item.retrieve(item_id=kept.id)
        assert until_type(connection, "conversation.item.retrieved")[-1].item == kept
        shown = say(connection, image(0, 0.0))
        quiet.show(0, 0.0)
        connection.conversation.item.delete(item_id=shown.id)
        refused(connection, "item_already_read")
        say(connection, text("more"))
        assert answered(connection) == quiet.ask("more")


def test_only_the_newest_items_are_kept_and_those_that_wait(server: Running) -> None:
    with connect(server) as connection:
        begun(connection, keep_turns=False, max_output_tokens=1)
        first = say(connection, text("word"))
        answered(connection)
        names = [say(connection, text("a")).id for _ in range(260)]
        connection.conversation.item.retrieve(item_id=first.id)
        refused(connection, "item_not_found")
        connection.conversation.item.retrieve(item_id=names[0])
        until_type(connection, "conversation.item.retrieved")


def test_messages_of_bytes_are_frames_of_which_the_newest_win() -> None:
    with running() as server, connect(server) as connection:
        stream = begun(connection).stream["id"]
        hold = threading.Event()
        server.context.worker.call(hold.wait)  # the engine is busy
        for seed in range(20):
            connection.send_raw(png(seed))
        connection.send_raw(b"no picture")
        refused(connection, "invalid_image")
        hold.set()
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["queued"] == 0)
        say(connection, text("word"))
        answered(connection)
        found = server.client.get(f"/v1/streams/{stream}").json()
        assert found["frames"] + found["dropped"] == 20 and 4 <= found["frames"] <= 8
        assert 0 <= found["time"] < 20


def test_frames_as_messages_are_seen_at_the_time_at_which_they_come(server: Running) -> None:
    with connect(server) as connection:
        stream = begun(connection).stream["id"]
        for seed in range(3):
            connection.send_raw(png(seed))
            time.sleep(0.1)
        say(connection, text("word"))
        assert answered(connection)
        found = server.client.get(f"/v1/streams/{stream}").json()
        assert found["frames"] == 3 and 0.15 < found["time"] < 2


def test_who_comes_back_goes_on_where_the_session_was(server: Running) -> None:
    quiet = Quiet()
    with connect(server) as connection:
        session = begun(connection, instructions="Be brief.")
        item = say(connection, image(0, 0.0), text("word"))
        quiet.show(0, 0.0)
        assert answered(connection) == quiet.ask("word", "Be brief.")
        say(connection, text("two words"))
    with connect(server, session_id=session.id) as connection:
        created = until_type(connection, "conversation.created")[0].session
        assert (created.id, created.instructions) == (session.id, "Be brief.")
        connection.conversation.item.retrieve(item_id=item.id)
        assert until_type(connection, "conversation.item.retrieved")[-1].item == item
        assert answered(connection) == quiet.ask("two words", "Be brief.")


@pytest.mark.parametrize("is_polite", [True, False])
def test_an_answer_whose_client_goes_away_is_given_up(endless: Running, is_polite: bool) -> None:
    with connect(endless) as connection:
        session = begun(connection)
        say(connection, text("word"))
        connection.response.create(response={"max_output_tokens": "inf"})
        until_type(connection, "response.output_text.delta")
        if not is_polite:
            connection._connection.socket.shutdown(SHUT_RDWR)
    until(lambda: not endless.context.worker.answering.growing)
    with connect(endless, session_id=session.id) as connection:
        begun(connection)
        assert answered(connection)  # the question waits again


def test_a_session_is_there_again_after_a_restart(tmp_path: Path) -> None:
    quiet = Quiet()
    with running(state_dir=tmp_path) as server, connect(server) as connection:
        session = begun(connection, instructions="Be brief.")
        say(connection, image(0, 0.0), text("word"))
        quiet.show(0, 0.0)
        answers = [answered(connection)]
    with running(state_dir=tmp_path) as server, connect(server, session_id=session.id) as connection:
        assert begun(connection).instructions == "Be brief."
        say(connection, image(1, 1.0), text("two words"))
        quiet_answers = [quiet.ask("word", "Be brief.")]
        quiet.show(1, 1.0)
        answers.append(answered(connection))
        assert answers == [*quiet_answers, quiet.ask("two words", "Be brief.")]


def test_the_official_client_reconnects_when_the_server_restarts(tmp_path: Path) -> None:
    servers: list[Running] = []
    seen: list[int] = []
    with running(state_dir=tmp_path) as first:
        client = client_of(first)
        ids: list[str] = []

        def again(event: Any) -> Any:
            seen.append(event.close_code)
            client.websocket_base_url = servers[0].url.replace("http", "ws") + "/v1"
            return {"extra_query": {"session_id": ids[0]}}

        manager = client.realtime.connect(model=MODEL, on_reconnecting=again, initial_delay=0.01)
        connection = manager.enter()
        ids.append(begun(connection).id)
        say(connection, image(0, 0.0))
        stop = first
    assert stop is first
    with running(state_dir=tmp_path) as second:
        servers.append(second)
        for event in connection:
            if event.type == "session.created":
                assert event.session.id == ids[0] and event.session.stream["frames"] == 1
                break
        connection.close()
    assert seen == [1012]


@pytest.mark.slow
def test_the_command_ends_connections_so_that_clients_come_back(tmp_path: Path) -> None:
    process = Process(tmp_path)
    clients = []

    def opened(**query: str) -> Any:
        base = str(process.client.base_url).rstrip("/") + "/v1"
        clients.append(openai.OpenAI(base_url=base, api_key="none"))
        return clients[-1].realtime.connect(model="builtin", extra_query=query)

    with opened() as connection:
        session = begun(connection)
        say(connection, image(0, 0.0), text("word"))
        first = answered(connection)
        with contextlib.suppress(ConnectionClosed):  # seen while it is being sent, or afterwards
            connection.send_raw(b"x" * (17 * 2**20))
        assert closed_with(connection)[0] == 1009
    with opened(session_id=session.id) as connection:
        begun(connection)
        process.process.send_signal(signal.SIGTERM)
        assert closed_with(connection)[0] == 1012
    process.end(signal.SIGTERM)
    process = Process(tmp_path)
    with opened(session_id=session.id) as connection:
        assert begun(connection).stream["frames"] == 1 and first
        say(connection, text("word"))
        assert answered(connection)
    process.end(signal.SIGKILL)


def test_the_newest_connection_has_the_session(server: Running) -> None:
    with connect(server) as first:
        session = begun(first)
        with connect(server, session_id=session.id) as second:
            begun(second)
            assert closed_with(first) == (1008, "another connection took the session over")
            say(second, text("word"))
            assert answered(second)


def test_a_session_without_its_client_is_deleted_after_a_while_unless_it_has_a_name() -> None:
    with running(limits=Limits(session_seconds=0.3)) as server:
        ids = []
        for query in ({}, {"name": "door"}):
            with connect(server, **query) as connection:
                time.sleep(0.5)  # not while a client is there
                ids.append(begun(connection).id)
        streams = lambda: server.client.get("/v1/streams").json()["data"]  # noqa: E731
        until(lambda: len(streams()) == 1)
        assert streams()[0]["name"] == "door" and streams()[0]["idle_seconds"] is None
        assert denied(server, f"/v1/realtime?session_id={ids[0]}")["code"] == "session_not_found"
        with connect(server, session_id=ids[1]) as connection:
            begun(connection)
            server.client.delete(f"/v1/streams/{streams()[0]['id']}")
            assert closed_with(connection) == (1008, "the stream was deleted")


def test_frames_of_others_keep_a_session_alive() -> None:
    with running(limits=Limits(session_seconds=0.6)) as server:
        with connect(server) as connection:
            stream = begun(connection).stream["id"]
        for seed in range(6):
            time.sleep(0.2)
            assert push(server.client, stream, seed).status_code == 200
        until(lambda: server.client.get(f"/v1/streams/{stream}").status_code == 404)


def test_nobody_else_opens_a_session() -> None:
    keys = ("first-key", "second-key")
    with running(keys=keys, limits=Limits(streams_per_key=2)) as server:
        for headers in (None, {"authorization": "Bearer third-key"}):
            error = denied(server, "/v1/realtime", headers)
            assert (error["status"], error["code"]) == (401, "invalid_api_key")
        with connect(server, keys[0]) as connection:
            session = begun(connection)
        two = {"authorization": f"Bearer {keys[1]}"}
        stream = session.stream["id"]
        for query, code in (
            (f"session_id={session.id}", "session_not_found"),
            (f"stream={stream}", "stream_not_found"),
            ("model=other", "model_not_found"),
            ("session_id=%00", "session_not_found"),
        ):
            error = denied(server, f"/v1/realtime?{query}", two)
            assert (error["status"], error["code"]) == (404, code)
        error = denied(server, "/v1/realtime?call_id=1", two)
        assert (error["status"], error["param"]) == (400, "call_id")
        assert denied(server, "/v1/realtime?session_id=a&stream=b", two)["status"] == 400
        for _ in range(2):
            with connect(server, keys[1]) as connection:
                begun(connection)
        assert denied(server, "/v1/realtime", two)["status"] == 429
        address = server.url.replace("http", "ws") + "/v1/realtime"
        offered: Any = ["realtime", f"openai-insecure-api-key.{keys[0]}"]
        with open_socket(f"{address}?session_id={session.id}", subprotocols=offered) as socket:
            assert socket.subprotocol == "realtime"
            assert EVENTS.validate_json(socket.recv()).session.id == session.id


def test_a_page_of_another_address_opens_no_session(server: Running) -> None:
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}):
        assert denied(server, "/v1/realtime", headers)["status"] == 403


def test_a_message_that_is_too_large_ends_the_connection() -> None:
    with running(limits=Limits(message_bytes=100_000)) as server, connect(server) as connection:
        session = begun(connection)
        connection.send_raw(b"x" * 200_000)
        assert closed_with(connection)[0] == 1009
        with connect(server, session_id=session.id) as again:
            begun(again)


def test_a_client_that_takes_no_events_is_sent_away_and_may_come_back() -> None:
    with running(limits=Limits(unread_bytes=20_000)) as server:
        with connect(server) as connection:
            session = begun(connection)
            said = say(connection, text("x" * 8000))
        found = server.context.realtime._sessions[session.stream["id"]]
        options = {"max_queue": 1, "compression": None, "close_timeout": 0.5}
        address = server.url.replace("http", "ws") + f"/v1/realtime?session_id={session.id}"
        with open_socket(address, **options) as socket:
            retrieve = json.dumps({"type": "conversation.item.retrieve", "item_id": said.id})
            until(lambda: found.left is None)
            for _ in range(3000):  # 24 MB of events, more than the sockets hold
                try:
                    socket.send(retrieve)
                except ConnectionClosed:
                    break
            until(lambda: found.left is not None)
        with connect(server, session_id=session.id) as connection:
            begun(connection)
            connection.conversation.item.retrieve(item_id=said.id)
            assert until_type(connection, "conversation.item.retrieved")
