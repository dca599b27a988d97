"""Fields of chats: each that OpenAI knows is offered or refused by name, no value makes the server fail."""

import json

import pytest
from openai.types.chat.chat_completion_message import ChatCompletionMessage
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from infinitevl.model.opening import description_of
from infinitevl.server.schemas import ChatRequest, Message
from tests.server.serving import MODEL, Running, error_of, running

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "word"}]
BODY = {"model": MODEL, "messages": HELLO, "max_tokens": 2}


def test_every_field_of_the_official_client_is_known() -> None:
    assert set(CompletionCreateParamsBase.__annotations__) <= set(ChatRequest.model_fields)
    assert set(ChatCompletionMessage.model_fields) <= set(Message.model_fields)


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (b'{"model": 1}', None, "no content-type"),
        (b'{"model": 1}', "text/plain", "content-type is 'text/plain'"),
        (b"[1]", "application/json", "not a JSON object"),
        (
            b"{bad",
            "application/json",
            "not JSON: Expecting property name enclosed in double quotes at letter 1",
        ),
        (b"{}", "application/json", "is missing"),
    ],
)
def test_a_wrong_body_is_told_what_it_was_and_what_to_send(
    server: Running, body: bytes, kind: str | None, told: str
) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = server.client.post(CHAT, content=body, headers=headers)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]


def test_an_error_says_which_field_held_what(server: Running) -> None:
    video = {"type": "video_url", "video_url": {"url": "data:,", "fps": -1}}
    for fields, told in [
        ({"temperature": 5}, "temperature: Input should be less than or equal to 2, not 5."),
        (
            {"messages": [{"role": "user", "content": [video]}]},
            "messages[0].content[0].video_url.fps: Input should be greater than 0, not -1.",
        ),
    ]:
        assert server.client.post(CHAT, json={**BODY, **fields}).json()["error"]["message"] == told


REFUSED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": 0.1,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"1": 5},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": -1,
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "service_tier": "flex",
    "store": True,
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "low",
    "web_search_options": {},
}
WRONG = {
    "model": [None, 5, ["tiny"], {}],
    "messages": [
        None,
        "word",
        [],
        {},
        [None],
        ["word"],
        [[]],
        [{"role": "user"}],
        [{"role": "user", "content": []}],
    ],
    "temperature": [-0.1, 2.1, "1", True, [], "NaN", "Infinity", 10**400],
    "top_p": [0, 1.1, "1", "NaN", -1],
    "n": [0, -1, 1.5, "1", True, 10**30, 7],
    "max_tokens": [0, -1, 1.5, "9", True, 10**6, 10**300, "NaN"],
    "max_completion_tokens": [0, 10**6, "9"],
    "seed": [1.5, "1", 2**63, -(2**63) - 1, 10**400, True],
    "stop": [[""], "", 5, [5], ["x"] * 17, "x" * 257, {}, [["x"]]],
    "stream": ["true", 1, [], {}],
    "stream_options": [{"include_usage": True}, 5, {"x": 1}, "usage"],
    "logprobs": ["true", 1, 5, []],
    "top_logprobs": [-1, 21, "3", 1.5, True, 3],
    "user": [5, [], {}],
    "metadata": [5, {"a": 5}, [["a", "b"]]],
    "media_io_kwargs": [5, {"video": 5}, {"image": {}}],
    "mm_processor_kwargs": [{"fps": 0}, {"fps": "NaN"}, {"x": 1}],
    "no_such_field": [None, 1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_offered_is_named(server: Running, name: str) -> None:
    error = error_of(server.client.post(CHAT, json=BODY | {name: REFUSED[name]}), 400)
    assert error["param"] == name and error["code"] == "unsupported_parameter"


@pytest.mark.parametrize("name", WRONG)
def test_values_that_cannot_be_are_refused_in_openais_shape(server: Running, name: str) -> None:
    for value in WRONG[name]:
        response = server.client.post(CHAT, content=as_json(BODY | {name: value}), headers=JSON)
        error = error_of(response, 400)
        assert error["param"].startswith(name) and error["type"] == "invalid_request_error", (value, error)


JSON = {"content-type": "application/json"}


def as_json(body: dict) -> bytes:
    """JSON as Python's clients write it, with NaN and infinity as numbers."""
    text = json.dumps(body)
    return text.replace('"NaN"', "NaN").replace('"Infinity"', "Infinity").encode()


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "bytes that are no text": b'{"model": "\xff"}',
    "half a character": b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "a number without end": b'{"model": "tiny", "seed": ' + b"9" * 10_000 + b"}",
    "brackets without end": b"[" * 100_000,
    "brackets in a field": b'{"model": "tiny", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_none_are_refused(server: Running, name: str) -> None:
    error_of(server.client.post(CHAT, content=BODIES[name], headers=JSON), 400)
    assert server.client.get("/health").status_code == 200


ASKS_FOR_NOTHING = {
    "audio": None,
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "max_completion_tokens": 2,
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "moderation": None,
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": None,
    "presence_penalty": 0.0,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "safety_identifier": "me",
    "seed": None,
    "service_tier": "auto",
    "stop": None,
    "store": False,
    "stream": False,
    "stream_options": None,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "user": "me",
    "verbosity": None,
    "web_search_options": None,
}


def test_all_fields_at_once_may_ask_for_nothing(server: Running) -> None:
    plain = server.client.post(CHAT, json=BODY).json()
    response = server.client.post(CHAT, json=BODY | ASKS_FOR_NOTHING)
    assert response.status_code == 200, response.text
    assert response.json()["choices"] == plain["choices"]
    assert server.client.post(CHAT, json=BODY | {"stop": []}).json()["choices"] == plain["choices"]


def test_an_answer_may_be_sent_back_as_it_came(server: Running) -> None:
    message = server.client.post(CHAT, json=BODY).json()["choices"][0]["message"]
    full = ChatCompletionMessage.model_validate(message).model_dump()  # with what it does not say as null
    for back in (message, full):
        response = server.client.post(CHAT, json=BODY | {"messages": [*HELLO, back, *HELLO]})
        assert response.status_code == 200, response.text
    called = message | {"tool_calls": [{"id": "x", "type": "function", "function": {"name": "f"}}]}
    error = error_of(server.client.post(CHAT, json=BODY | {"messages": [called]}), 400)
    assert error["param"] == "messages[0].tool_calls"


def test_a_model_says_what_it_knows_if_somebody_wrote_it_down(server: Running) -> None:
    assert "description" not in server.client.get("/v1/models").json()["data"][0]
    with running(description="It reads signs.") as described:
        (model,) = described.client.get("/v1/models").json()["data"]
        assert model["description"] == "It reads signs." and model["object"] == "model"
        assert described.client.get(f"/v1/models/{MODEL}").json() == model


def test_what_the_builtin_model_knows_stands_in_its_card(tmp_path) -> None:
    told = description_of("builtin")
    assert told is not None and told == description_of(None) and len(told) < 1000
    assert "On photographs it guesses" in told and not set("*#\n") & set(told)
    assert description_of(str(tmp_path)) is None and description_of("owner/name") is None
    (tmp_path / "README.md").write_text("# A model\n\n## What it can and cannot do\n\nIt **reads**\nsigns.\n")
    assert description_of(str(tmp_path)) == "It reads signs."
    (tmp_path / "README.md").write_bytes(b"\xff")
    assert description_of(str(tmp_path)) is None
