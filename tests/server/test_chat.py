"""Chat: the official client, equality with the model's own answers, refusals, and clients that leave."""

import base64
import io
import json

import httpx
import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from infinitevl.engine.chat import ChatSession
from infinitevl.server.settings import Limits
from tests.server.serving import MODEL, Running, endless_engine, error_of, picture, png, running, until
from tests.support import tiny_model, tiny_processor

HELLO = [{"role": "user", "content": "word says the sign"}]
HISTORY = [
    {"role": "system", "content": "the sign"},
    {"role": "user", "content": "what says it"},
    {"role": "assistant", "content": "wordan"},
    {"role": "user", "content": "and the other sign"},
]


def data_uri(seed: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(seed)).decode()}"


def shown(seed: int) -> list[dict]:
    parts = [{"type": "image_url", "image_url": {"url": data_uri(seed)}}, {"type": "text", "text": "word"}]
    return [{"role": "user", "content": parts}]


@pytest.fixture
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def generated(messages: list[dict], length: int) -> str:
    """What the model itself says, by transformers' generate."""
    processor, model = tiny_processor(), tiny_model()
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    never = [model.config.image_token_id, model.config.video_token_id]
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=length, do_sample=False, suppress_tokens=never)
    return processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_official_client_finds_the_model(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "infinitevl"


def test_an_answer_is_that_of_a_chat_session(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12)
    wanted = ChatSession(tiny_model(), tiny_processor()).say(HELLO[0]["content"], max_new_tokens=12)
    assert answer.choices[0].message.content == wanted and wanted
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 12 and answer.usage.prompt_tokens > 10


@pytest.mark.parametrize(
    "messages", [HELLO, HISTORY, [*HISTORY[:3], *shown(1)]], ids=["one", "four", "picture"]
)
def test_a_whole_conversation_is_read_as_generate_reads_it(client: OpenAI, messages: list[dict]) -> None:
    plain = [
        {
            **message,
            "content": message["content"]
            if isinstance(message["content"], str)
            else [
                {"type": "image", "image": Image.open(io.BytesIO(png(1)))},
                {"type": "text", "text": "word"},
            ],
        }
        for message in messages
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=10)
    assert answer.choices[0].message.content == generated(plain, 10)


def test_two_pictures_make_two_answers(client: OpenAI) -> None:
    answers = {
        client.chat.completions.create(model=MODEL, messages=shown(seed), max_tokens=12)
        .choices[0]
        .message.content
        for seed in range(4)
    }
    assert len(answers) > 1


def test_a_streamed_answer_is_the_whole_one_with_its_usage(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_of_events_ends_with_done(server: Running) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "stream": True}
    response = server.client.post("/v1/chat/completions", json=body)
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(json.loads(line[6:])["object"] == "chat.completion.chunk" for line in lines[:-1])


def test_an_answer_ends_before_a_stop_string(client: OpenAI) -> None:
    whole = (
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20).choices[0].message.content
    )
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20, stop=[stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_equal_seeds_draw_alike_and_choices_differ(client: OpenAI) -> None:
    settings = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 2.0, "n": 3}
    first, again = (client.chat.completions.create(seed=5, **settings) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    single = client.chat.completions.create(seed=6, **{**settings, "n": 1})
    assert single.choices[0].message.content == texts[1]


REFUSED = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "audio": {"voice": "alloy", "format": "wav"},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "top_logprobs": 3,
    "frequency_penalty": 0.5,
    "n": 100,
    "max_tokens": 10**6,
    "no_such_field": 1,
    "temperature": -1,
    "top_p": 0,
    "stop": [""],
    "stream_options": {"include_usage": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_offered_is_refused_by_name(server: Running, name: str) -> None:
    body = {"model": MODEL, "messages": HELLO, name: REFUSED[name]}
    assert error_of(server.client.post("/v1/chat/completions", json=body), 400)["param"] == name


def test_fields_that_ask_for_nothing_are_taken(server: Running) -> None:
    neutral = {"tools": [], "tool_choice": "none", "logprobs": False, "presence_penalty": 0, "user": "me"}
    body = {
        "model": MODEL,
        "messages": HELLO,
        "max_tokens": 2,
        **neutral,
        "response_format": {"type": "text"},
    }
    assert server.client.post("/v1/chat/completions", json=body).status_code == 200


def test_the_client_sees_openais_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.chat.completions.create(model="gpt", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as audio:
        parts = [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert audio.value.param == "messages[0].content[0].type" and "input_audio" in audio.value.message


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,!!!",
        "data:image/png;base64,aGVsbG8=",
        "file:///etc/passwd",
        "/etc/passwd",
        "gopher://example.org/x",
        "http://127.0.0.1:1/x.png",
        "http://localhost/x.png",
        "http://[::1]/x.png",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/x.png",
        "http://0x7f000001/x.png",
        "http://2130706433/x.png",
    ],
)
def test_pictures_that_may_not_be_shown_are_refused_with_a_reason(server: Running, url: str) -> None:
    for kind in ("image_url", "video_url"):
        part = {"type": kind, kind: {"url": url}}
        body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}]}
        error = error_of(server.client.post("/v1/chat/completions", json=body), 400)
        assert error["param"].startswith("messages")


def test_contradictions_about_a_video_are_refused(server: Running) -> None:
    part = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA==", "fps": 1}}
    body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}]}
    for extra in ({"media_io_kwargs": {"video": {"fps": 2}}}, {"mm_processor_kwargs": {"num_frames": 4}}):
        error = error_of(server.client.post("/v1/chat/completions", json=body | extra), 400)
        assert "fps" in error["message"]


def test_a_video_is_sampled_as_asked(server: Running, tmp_path) -> None:
    data = f"data:video/mp4;base64,{base64.b64encode(video()).decode()}"
    lengths = {}
    for extra in ({}, {"fps": 1}, {"num_frames": 8}):
        part = {
            "type": "video_url",
            "video_url": {"url": data, "max_pixels": 56 * 56, "min_pixels": 56 * 56, **extra},
        }
        body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}], "max_tokens": 2}
        response = server.client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        lengths[str(extra)] = response.json()["usage"]["prompt_tokens"]
    assert len(set(lengths.values())) == 3 and lengths["{'fps': 1}"] < lengths["{'num_frames': 8}"]


def video() -> bytes:
    """Six seconds at four frames a second."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 112
        for seed in range(24):
            frame = av.VideoFrame.from_ndarray(picture(seed).repeat(2, 0).repeat(2, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


VERY_LONG = {"model": MODEL, "messages": HELLO, "max_tokens": 10**6}
LIMITS = Limits(answer_tokens=10**6, waiting=1)


def test_a_client_that_leaves_frees_its_slot() -> None:
    with running(endless_engine(), limits=LIMITS) as server:
        answering = server.context.worker.answering
        streamed = VERY_LONG | {"stream": True}
        with server.client.stream("POST", "/v1/chat/completions", json=streamed) as response:
            lines = response.iter_lines()  # the connection ends with it
            next(lines)
            until(lambda: answering.growing)
        until(lambda: not answering.growing)

        with pytest.raises(httpx.ReadTimeout):
            server.client.post("/v1/chat/completions", json=VERY_LONG, timeout=0.5)
        until(lambda: not answering.growing)
        assert server.context.worker.engine.pool.num_free == 5


def test_too_many_answers_are_told_to_come_back() -> None:
    with running(endless_engine(), limits=LIMITS) as server:
        answering, streamed = server.context.worker.answering, VERY_LONG | {"stream": True}
        with server.client.stream("POST", "/v1/chat/completions", json=streamed | {"n": 3}):
            until(lambda: answering.growing)
            with server.client.stream("POST", "/v1/chat/completions", json=streamed):
                until(lambda: answering.waiting)
                response = server.client.post("/v1/chat/completions", json=VERY_LONG)
                assert error_of(response, 429)["type"] == "rate_limit_error"
                assert response.headers["retry-after"] == "1"
