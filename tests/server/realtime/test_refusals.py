"""What a realtime session cannot do is said by name, and the session goes on."""

import json
import random
from typing import Any

import pytest

from tests.server.realtime.talking import (
    answered,
    begun,
    connect,
    image,
    received,
    refused,
    say,
    text,
    until_type,
)
from tests.server.serving import Running


def message(*content: dict[str, Any], **item: Any) -> dict[str, Any]:
    return {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": "user", "content": list(content), **item},
    }


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "realtime", **session}}


def create(**response: Any) -> dict[str, Any]:
    return {"type": "response.create", "response": response}


UNSUPPORTED = {
    "session.type": {"type": "session.update", "session": {"type": "transcription"}},
    "session.output_modalities": update(output_modalities=["audio"]),
    "session.audio.input.turn_detection.type": update(
        audio={"input": {"turn_detection": {"type": "server_vad"}}}
    ),
    "session.audio.output.voice": update(audio={"output": {"voice": "alloy"}}),
    "session.tools": update(tools=[{"type": "function", "name": "f"}]),
    "session.tool_choice": update(tool_choice="required"),
    "session.tracing": update(tracing="auto"),
    "session.prompt": update(prompt={"id": "x"}),
    "session.model": update(model="gpt-realtime"),
    "session.temperature": update(temperature=0.5),
    "response.tools": create(tools=[{"type": "function", "name": "f"}]),
    "response.input": create(input=[]),
    "response.output_modalities": create(output_modalities=["text", "audio"]),
    "response.audio.output.voice": create(audio={"output": {"voice": "alloy"}}),
    "response.conversation": create(conversation="other"),
    "item.type": {"type": "conversation.item.create", "item": {"type": "function_call_output", "output": ""}},
    "item.role": message(text("word"), role="assistant"),
    "item.content[0]": message({"type": "input_audio", "audio": ""}),
    "item.content": message(image(0), role="system"),
    "item.content[1].input_text.colour": message(text("a"), {**text("b"), "colour": 1}),
    "previous_item_id": message(text("a")) | {"previous_item_id": "item_elsewhere"},
    "input_audio_buffer.append": {"type": "input_audio_buffer.append", "audio": ""},
    "conversation.item.truncate": {"type": "conversation.item.truncate", "item_id": "x"},
}
INVALID = {
    "session.max_output_tokens": update(max_output_tokens=10**6),
    "session.max_output_tokens.constrained-int": update(max_output_tokens=0),
    "session.instructions": update(instructions="x" * 9000),
    "session": {"type": "session.update", "session": []},
    "response": create(),
    "response.metadata": create(metadata={str(number): "" for number in range(17)}),
    "item.content": message(),
    "item.content[0].input_text.text": message(text("")),
    "item.content[0].image_url": message({"type": "input_image", "image_url": "http://127.0.0.1/x.png"}),
    "item.content[0].input_image.time": message({**image(0), "time": 1e300}),
    "type": {"type": "nothing"},
    "event_id": {"type": "response.cancel", "event_id": 5},
}


@pytest.fixture(scope="module")
def connection(server: Running):
    with connect(server) as opened:
        begun(opened)
        yield opened


@pytest.mark.parametrize("param", UNSUPPORTED)
def test_what_is_not_offered_is_named(connection, param: str) -> None:
    connection.send(UNSUPPORTED[param] | {"event_id": "mine"})
    error = refused(connection, "unsupported_parameter")
    assert (error.param, error.event_id, error.type) == (param, "mine", "invalid_request_error")


@pytest.mark.parametrize("param", INVALID)
def test_what_cannot_be_is_named(connection, param: str) -> None:
    connection.send(INVALID[param])
    assert refused(connection, "invalid_value").param.startswith(param.split(".constrained")[0])


def test_what_asks_for_nothing_is_taken(connection) -> None:
    nothing = {"input": {"turn_detection": None, "transcription": None}, "output": {"voice": None}}
    fields = {"audio": nothing, "tools": [], "tool_choice": "auto", "tracing": None, "truncation": "auto"}
    connection.session.update(session={"type": "realtime", "output_modalities": ["text"], **fields})
    assert until_type(connection, "session.updated")[-1].session.audio is None


def test_what_is_no_picture_is_refused_and_shows_nothing(server: Running) -> None:
    with connect(server) as connection:
        stream = begun(connection).stream["id"]
        for address in ("data:image/png;base64,AAAA", "data:image/png;base64,!", "data:,"):
            bad = {"type": "input_image", "image_url": address}
            connection.send(message(image(0), bad))
            assert refused(connection, "invalid_image").param == "item.content[1].image_url"
        connection.send(message(image(0, 5.0), image(1, 4.0)))
        assert refused(connection, "invalid_value").param == "time"
        say(connection, text("word"))
        answered(connection)
        assert server.client.get(f"/v1/streams/{stream}").json()["frames"] == 0


def test_names_and_letters_have_limits(server: Running) -> None:
    with connect(server) as connection:
        begun(connection)
        assert say(connection, text("a"), id="mine").id == "mine"
        connection.send(message(text("b"), id="mine"))
        assert refused(connection, "invalid_value").param == "item.id"
        connection.send(message(text("x" * 8192)))
        assert refused(connection, "invalid_value").param == "item.content"
        say(connection, text("x" * 8191))
        connection.send(message(text("c")))
        assert refused(connection, "invalid_value").param == "item.content"


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "[" * 100_000,
        "1" * 5000,
        '{"type": null}',
        '{"type": ["session.update"]}',
    ],
)
def test_what_is_no_event_is_refused(connection, raw: str) -> None:
    connection.send_raw(raw)
    assert refused(connection, "invalid_value")


def test_no_rubbish_ends_a_session(connection) -> None:
    draw = random.Random(0)
    values = [
        None,
        True,
        -1,
        10**400,
        0.5,
        "",
        "\ud800",
        "x" * 600,
        [],
        {},
        [[]],
        {"type": "message"},
        float("nan"),
    ]
    good = [*UNSUPPORTED.values(), *INVALID.values(), message(text("a")), {"type": "response.cancel"}]
    for _ in range(60):
        event = json.loads(json.dumps(draw.choice(good)))
        place = event
        while True:
            key = draw.choice([*place, "extra"]) if isinstance(place, dict) else draw.randrange(len(place))
            inner = place.get(key) if isinstance(place, dict) else place[key]
            if not isinstance(inner, dict | list) or not inner or draw.random() < 0.4:
                place[key] = draw.choice(values)
                break
            place = inner
        connection.send_raw(json.dumps(event))
        connection.send_raw(
            '{"type": "conversation.item.retrieve", "item_id": "nothing", "event_id": "after"}'
        )
        said = [received(connection)]
        while not (said[-1].type == "error" and said[-1].error.event_id == "after"):
            said.append(received(connection))
            assert len(said) < 40
        kinds = {each.type for each in said[:-1] if not each.type.startswith("response.")}
        done = {"session.updated", "conversation.item.added", "conversation.item.done"}
        assert kinds <= {"error"} | done
        assert not [each for each in said if each.type == "error" and each.error.type == "server_error"]
