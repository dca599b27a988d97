"""/v1/realtime with OpenAI's client: what is said and shown is answered as by a stream that nobody shares."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import openai

from infinitevl.processing.prompt.template import DEFAULT_SYSTEM
from tests.server.realtime.talking import (
    LENGTH,
    Quiet,
    answered,
    begun,
    client_of,
    connect,
    image,
    refused,
    say,
    text,
    until_type,
)
from tests.server.serving import MODEL, Running, asked


def test_an_answer_comes_as_the_events_of_the_protocol(server: Running) -> None:
    with connect(server) as connection:
        session = begun(connection)
        assert session.type == "realtime" and session.output_modalities == ["text"]
        assert session.instructions == DEFAULT_SYSTEM and session.model == MODEL
        said = say(connection, text("word"))
        connection.response.create(response={"metadata": {"number": "1"}})
        events = until_type(connection, "response.done")
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    first, last = events[0].response, events[-1].response
    assert (first.status, first.output, first.usage) == ("in_progress", [], None)
    assert last.status in ("completed", "incomplete") and last.metadata == {"number": "1"}
    assert last.usage.total_tokens == last.usage.input_tokens + last.usage.output_tokens
    assert last.usage.output_tokens <= LENGTH and last.conversation_id
    assert events[2].previous_item_id == events[-3].previous_item_id == said.id
    assert len({event.event_id for event in events}) == len(events)
    assert Quiet().ask("word") == last.output[0].content[0].text == events[-5].text


def test_a_conversation_with_pictures_equals_a_stream_that_saw_and_was_asked_the_same(
    server: Running,
) -> None:
    quiet = Quiet()
    with connect(server) as connection:
        begun(connection)
        say(connection, image(0, 0.0), image(1, 0.5), text("word"))
        quiet.show(0, 0.0)
        quiet.show(1, 0.5)
        first = answered(connection)
        assert first == quiet.ask("word") and first
        say(connection, image(2, 3.0))
        say(connection, text("two words"))
        say(connection, text("more"), image(3, 4.25))
        quiet.show(2, 3.0)
        quiet.show(3, 4.25)
        assert answered(connection) == quiet.ask("two words\nmore")
        assert answered(connection, instructions="Which?") == quiet.ask("Which?")
        say(connection, text("word"))
        assert answered(connection, instructions="Be brief.") == quiet.ask("word", "Be brief.")
        say(connection, text("It is late."), role="system")
        say(connection, text("word"))
        assert answered(connection) == quiet.ask("word", f"{DEFAULT_SYSTEM}\n\nIt is late.")


def test_what_is_asked_beside_the_conversation_is_not_remembered(server: Running) -> None:
    quiet = Quiet()
    with connect(server) as connection:
        begun(connection, instructions="")
        say(connection, image(0, 0.0), text("word"))
        quiet.show(0, 0.0)
        connection.response.create(response={"conversation": "none", "max_output_tokens": 3})
        events = until_type(connection, "response.done")
        assert events[-1].response.conversation_id is None
        assert not [event for event in events if event.type.startswith("conversation.item")]
        wanted = quiet.ask("word", None, keep=False, length=3)
        assert events[-1].response.output[0].content[0].text == wanted
        assert answered(connection) == quiet.ask("word", None)
        connection.session.update(session={"type": "realtime", "keep_turns": False})  # type: ignore[typeddict-item]
        until_type(connection, "session.updated")
        for words in ("word", "two words"):
            say(connection, text(words))
            assert answered(connection) == quiet.ask(words, None, keep=False)


def test_pictures_without_times_come_when_they_come(server: Running) -> None:
    with connect(server) as connection:
        stream = begun(connection).stream["id"]
        say(connection, image(0), image(1), image(2))
        say(connection, text("word"))
        answered(connection)
        found = server.client.get(f"/v1/streams/{stream}").json()
        assert (found["frames"], found["time"], found["dropped"]) == (3, 2.0, 0)
        say(connection, image(3))
        connection.session.update(session={"type": "realtime"})
        say(connection, image(4, 9.0), text("word")) if until_type(connection, "session.updated") else None
        answered(connection)
        assert server.client.get(f"/v1/streams/{stream}").json()["time"] == 9.0
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [image(5, 1.0)]}  # type: ignore[typeddict-item]
        )
        assert "time goes backwards" in refused(connection, "invalid_value").message


def test_more_pictures_than_the_queue_holds_are_all_seen(server: Running) -> None:
    quiet = Quiet()
    with connect(server) as connection:
        stream = begun(connection).stream["id"]
        hold = threading.Event()
        server.context.worker.call(hold.wait)  # the engine is busy
        say(connection, *(image(seed, seed) for seed in range(12)))
        say(connection, text("word"))
        for seed in range(12):
            quiet.show(seed, seed)
        threading.Timer(0.3, hold.set).start()
        assert answered(connection) == quiet.ask("word")
    found = server.client.get(f"/v1/streams/{stream}").json()
    assert (found["frames"], found["dropped"]) == (12, 0)


def test_a_stream_that_was_opened_elsewhere_can_be_talked_to(server: Running) -> None:
    quiet = Quiet(keep=False)
    stream = server.client.post("/v1/streams", json={"name": "door", "system": None}).json()["id"]
    with connect(server, stream=stream) as connection:
        session = begun(connection)
        assert session.stream["id"] == stream and not session.keep_turns and session.instructions == ""
        say(connection, image(0, 0.0), text("word"))
        quiet.show(0, 0.0)
        assert answered(connection) == quiet.ask("word", None)
        assert asked(server.client, stream, max_tokens=LENGTH) == quiet.ask("word", None)
        connection.session.update(session={"type": "realtime", "instructions": "Be brief."})
        until_type(connection, "session.updated")
        assert asked(server.client, stream, max_tokens=LENGTH) == quiet.ask("word", "Be brief.")
    found = server.client.get(f"/v1/streams/{stream}").json()
    assert (found["system"], found["keep_turns"]) == ("Be brief.", False)


def test_two_sessions_at_once_do_not_disturb_each_other(server: Running) -> None:
    def talk(seed: int) -> list[str]:
        with connect(server) as connection:
            begun(connection)
            answers = []
            for turn in range(3):
                say(connection, image(seed + turn, turn), text("word"))
                answers.append(answered(connection))
            return answers

    def alone(seed: int) -> list[str]:
        quiet, answers = Quiet(), []
        for turn in range(3):
            quiet.show(seed + turn, turn)
            answers.append(quiet.ask("word"))
        return answers

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(talk, (10, 20)))
    assert found == [alone(10), alone(20)] and found[0] != found[1]


def test_the_asynchronous_client_works_as_well(server: Running) -> None:
    async def talk() -> str:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
        said = ""
        async with client.realtime.connect(model=MODEL) as connection:
            await connection.session.update(session={"type": "realtime", "max_output_tokens": LENGTH})
            item = {"type": "message", "role": "user", "content": [image(0, 0.0), text("word")]}
            await connection.conversation.item.create(item=item)  # type: ignore[arg-type]
            await connection.response.create()
            async for event in connection:
                if event.type == "response.output_text.delta":
                    said += event.delta
                if event.type == "response.done":
                    break
        return said

    quiet = Quiet()
    quiet.show(0, 0.0)
    assert asyncio.run(talk()) == quiet.ask("word")


def test_the_connection_is_where_the_client_looks_for_it(server: Running) -> None:
    with client_of(server).realtime.connect(model=MODEL) as connection:
        assert until_type(connection, "session.created")
