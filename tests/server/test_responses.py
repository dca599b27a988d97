"""Responses: the official client and its strict models, equality with chats, refusals, clients that leave."""

import base64
import itertools
import json
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import TypeAdapter

from infinitevl.server.responses_schema import ResponsesRequest
from tests.server.serving import MODEL, Running, endless_engine, error_of, running, until
from tests.server.test_chat import LIMITS, data_uri, video

CALL = "/v1/responses"
HELLO = "word says the sign"
BODY = {"model": MODEL, "input": HELLO, "max_output_tokens": 12}
LOGPROBS = ["message.output_text.logprobs"]
EVENT = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chat_text(client: OpenAI, messages: list[dict], length: int = 12) -> str:
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=length)
    return answer.choices[0].message.content


def streamed(server: Running, **body: Any) -> list[dict]:
    """The events of a streamed response, whose names are their types."""
    response = server.client.post(CALL, json=BODY | {"stream": True, **body})
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


@pytest.mark.parametrize("asked", [{}, {"include": LOGPROBS, "top_logprobs": 2}, {"max_output_tokens": 400}])
def test_a_response_is_what_the_official_models_take_strictly(server: Running, asked: dict) -> None:
    given = server.client.post(CALL, json=BODY | asked).json()
    response = Response.model_validate(given, strict=True)
    assert set(given) - set(Response.model_fields) <= {"store"}  # of another version of the client
    for name, field in Response.model_fields.items():
        assert name in given or not field.is_required(), name
    assert response.status == ("completed" if "max_output_tokens" in asked else "incomplete")
    assert given["store"] is False


def test_every_field_of_the_official_client_is_known() -> None:
    assert set(ResponseCreateParamsBase.__annotations__) <= set(ResponsesRequest.model_fields)


def test_a_response_says_what_a_chat_says(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=HELLO, max_output_tokens=12)
    assert response.output_text == chat_text(client, [{"role": "user", "content": HELLO}])
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    usage = response.usage
    assert usage.output_tokens == 12 and usage.total_tokens == usage.input_tokens + 12
    assert (response.tools, response.tool_choice, response.parallel_tool_calls) == ([], "auto", True)
    whole = client.responses.create(model=MODEL, input=HELLO, metadata={"a": "b"})
    assert whole.status == "completed" and whole.metadata == {"a": "b"} and whole.error is None
    assert whole.output_text == chat_text(client, [{"role": "user", "content": HELLO}], 512)


def test_a_conversation_is_read_as_a_chat_reads_it(client: OpenAI) -> None:
    items = [
        {"role": "developer", "content": "the sign"},
        {"role": "user", "content": [{"type": "input_text", "text": "what says it"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "wordan", "annotations": [], "logprobs": []}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": data_uri(1), "detail": "auto"},
                {"type": "input_text", "text": "word"},
            ],
        },
    ]
    image = {"type": "image_url", "image_url": {"url": data_uri(1)}}
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "system", "content": "the sign"},
        {"role": "user", "content": "what says it"},
        {"role": "assistant", "content": "wordan"},
        {"role": "user", "content": [image, {"type": "text", "text": "word"}]},
    ]
    settings = {"model": MODEL, "max_output_tokens": 12}
    response = client.responses.create(input=items, instructions="be kind", **settings)
    assert response.output_text == chat_text(client, messages) and response.instructions == "be kind"
    plain = client.responses.create(input=items, **settings)
    assert plain.output_text == chat_text(client, messages[1:])
    assert plain.usage.input_tokens < response.usage.input_tokens


def test_a_response_is_sent_back_as_it_came(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input=HELLO, include=LOGPROBS, max_output_tokens=8)
    items = [{"role": "user", "content": HELLO}, *first.output, {"role": "user", "content": "and now"}]
    second = client.responses.create(model=MODEL, input=items, max_output_tokens=8)
    messages = [
        {"role": "user", "content": HELLO},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and now"},
    ]
    assert second.output_text == chat_text(client, messages, 8)


def test_a_video_may_be_shown(server: Running, client: OpenAI) -> None:
    data = f"data:video/mp4;base64,{base64.b64encode(video()).decode()}"
    lengths = {}
    for fps in (1, 2):
        part = {"type": "input_video", "video_url": data, "fps": fps, "max_pixels": 3136, "min_pixels": 3136}
        items = [{"role": "user", "content": [part, {"type": "input_text", "text": "word"}]}]
        response = server.client.post(CALL, json=BODY | {"input": items})
        assert response.status_code == 200, response.text
        lengths[fps] = response.json()["usage"]["input_tokens"]
    assert lengths[1] < lengths[2]


EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


@pytest.mark.parametrize("asked", [{}, {"include": LOGPROBS, "top_logprobs": 2}, {"max_output_tokens": 400}])
def test_events_are_what_the_official_models_take_strictly(server: Running, asked: dict) -> None:
    events = streamed(server, **asked)
    for event in events:
        EVENT.validate_python(event, strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [kind for kind, _ in itertools.groupby(event["type"] for event in events)]
    status = "completed" if "max_output_tokens" in asked else "incomplete"
    assert kinds == [*EVENTS, f"response.{status}"]
    whole = server.client.post(CALL, json=BODY | asked).json()
    last = events[-1]["response"]
    changing = {"id", "created_at", "completed_at", "output"}
    assert {k: v for k, v in last.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == last["output"][0]["content"][0]["text"]
    logprobs = [each for event in deltas for each in event["logprobs"]]
    assert logprobs == last["output"][0]["content"][0]["logprobs"] == events[-4]["logprobs"]
    assert bool(logprobs) == ("include" in asked)


def test_the_official_client_follows_a_stream(client: OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input=HELLO, max_output_tokens=12)
    text = ""
    for event in client.responses.create(model=MODEL, input=HELLO, max_output_tokens=12, stream=True):
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == whole.output_text
    settings = {"include": LOGPROBS, "top_logprobs": 2}
    with client.responses.stream(model=MODEL, input=HELLO, max_output_tokens=200, **settings) as stream:
        grown = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == grown[-1] and final.output_text.startswith(text)
    tokens = final.output[0].content[0].logprobs
    assert b"".join(bytes(each.bytes) for each in tokens).decode(errors="replace") == final.output_text


REFUSED: dict[str, Any] = {
    "access_programs": {},
    "background": True,
    "background_options": {},
    "context_management": [{"type": "compaction"}],
    "conversation": "conv_1",
    "image": {},
    "max_tool_calls": 1,
    "moderation": {"model": "m"},
    "previous_response_id": "resp_1",
    "prompt": {"id": "p"},
    "service_tier": "flex",
    "store": True,
    "tool_choice": "required",
    "tools": [{"type": "web_search"}],
    "truncation": "auto",
    "seed": 1,
    "stop": ["x"],
    "max_tokens": 5,
    "messages": [],
}
REFUSED_BY_PART = {
    "text.format": {"text": {"format": {"type": "json_object"}}},
    "text.verbosity": {"text": {"verbosity": "high"}},
    "reasoning.effort": {"reasoning": {"effort": "high"}},
    "reasoning.summary": {"reasoning": {"summary": "auto"}},
    "include[1]": {"include": [*LOGPROBS, "reasoning.encrypted_content"]},
    "stream_options.include_obfuscation": {"stream": True, "stream_options": {"include_obfuscation": True}},
}


def test_what_is_not_offered_is_named(server: Running) -> None:
    cases = {name: {name: value} for name, value in REFUSED.items()} | REFUSED_BY_PART
    for name, change in cases.items():
        error = error_of(server.client.post(CALL, json=BODY | change), 400)
        assert (error["param"], error["code"]) == (name, "unsupported_parameter"), error


def user(*parts: dict) -> dict:
    return {"input": [{"role": "user", "content": "word"}, {"role": "user", "content": list(parts)}]}


WRONG: dict[str, list[dict]] = {
    "input": [{"input": None}, {"input": 5}, {"input": []}, {"input": "x" * 4_000_001}],
    "input[0]": [{"input": ["word"]}],
    "input[0].type": [
        {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
    ],
    "input[0].role": [{"input": [{"role": "tool", "content": "x"}]}, {"input": [{"content": "x"}]}],
    "input[1].content": [user()],
    "input[1].content[0].type": [user({"type": kind, "text": "x"}) for kind in ("input_file", "text")],
    "input[1].content[0].image_url": [
        user({"type": "input_image", "detail": "auto"}),
        user({"type": "input_image", "image_url": "file:///etc/passwd"}),
        user({"type": "input_image", "image_url": "http://127.0.0.1:1/x.png"}),
        user({"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8="}),
    ],
    "input[1].content[0].file_id": [user({"type": "input_image", "file_id": "file_1"})],
    "input[1].content[0].video_url": [user({"type": "input_video", "video_url": "data:video/mp4;base64,!"})],
    "max_output_tokens": [{"max_output_tokens": value} for value in (0, 10**6, "9", 1.5, True)],
    "temperature": [{"temperature": value} for value in (-1, 3, "1")],
    "top_p": [{"top_p": value} for value in (0, 2, "1")],
    "top_logprobs": [{"top_logprobs": 2}, {"top_logprobs": 21, "include": LOGPROBS}],
    "include": [{"include": "x"}],
    "stream": [{"stream": "true"}],
    "stream_options": [{"stream_options": {"include_obfuscation": False}}],
    "metadata.a": [{"metadata": {"a": 1}}],
    "text": [{"text": "x"}],
    "instructions": [{"instructions": 5}],
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_speak_of_the_fields_of_the_request(server: Running, name: str) -> None:
    for change in WRONG[name]:
        error = error_of(server.client.post(CALL, json=BODY | change), 400)
        assert error["param"] == name, (change, error)
        assert "messages[" not in error["message"] and "completion" not in error["message"]


def test_what_asks_for_nothing_is_taken(server: Running) -> None:
    nothing: dict[str, Any] = dict.fromkeys(REFUSED.keys() - {"seed", "stop", "max_tokens", "messages"})
    nothing |= {
        "store": False,
        "background": False,
        "tools": [],
        "tool_choice": "none",
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": None, "summary": None},
        "truncation": "disabled",
        "include": [],
        "top_logprobs": 0,
        "service_tier": "auto",
        "user": "me",
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "parallel_tool_calls": False,
    }
    response = server.client.post(CALL, json=BODY | nothing)
    assert response.status_code == 200, response.text
    given = Response.model_validate(response.json(), strict=True)
    assert (given.user, given.safety_identifier, given.prompt_cache_key) == ("me", "me", "k")
    assert (given.tool_choice, given.parallel_tool_calls) == ("none", False)


def test_the_client_sees_openais_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.responses.create(model="gpt", input="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as stored:
        client.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    assert stored.value.param == "previous_response_id" and "earlier turns" in stored.value.message


def test_a_failure_on_the_way_is_an_event_and_a_failed_response() -> None:
    with running(endless_engine(), limits=LIMITS) as server:
        worker = server.context.worker
        body = BODY | {"stream": True, "max_output_tokens": 10**6}
        with server.client.stream("POST", CALL, json=body) as response:
            lines = response.iter_lines()
            next(line for line in lines if "output_text.delta" in line)
            worker.engine.step = lambda: (_ for _ in ()).throw(RuntimeError("broken"))
            worker.answering.growing[0].choices[0].answer.error = RuntimeError("broken")
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    for event in events[-2:]:
        EVENT.validate_python(event, strict=True)
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert "broken" not in json.dumps(events[-2:])


def test_a_client_that_leaves_frees_its_slot() -> None:
    with running(endless_engine(), limits=LIMITS) as server:
        answering = server.context.worker.answering
        body = BODY | {"max_output_tokens": 10**6}
        with server.client.stream("POST", CALL, json=body | {"stream": True}) as response:
            lines = response.iter_lines()  # the connection ends with it
            next(lines)
            until(lambda: answering.growing)
        until(lambda: not answering.growing)
        with pytest.raises(httpx.ReadTimeout):
            server.client.post(CALL, json=body, timeout=0.5)
        until(lambda: not answering.growing)
        assert server.context.worker.engine.pool.num_free == 5
