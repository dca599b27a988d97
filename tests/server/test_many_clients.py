"""Streams and chats of many clients at the same time: answers those of a quiet engine, nobody starved."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from infinitevl.engine.chat import ChatSession
from infinitevl.engine.session import StreamSession
from tests.server.serving import MODEL, asked, opened, picture, push, running, tiny_engine
from tests.server.soak import soak
from tests.support import tiny_model, tiny_processor

NUM_CLIENTS, NUM_FRAMES = 8, 4


def watch_and_ask(server, number: int) -> str:
    stream = opened(server.client)
    for at in range(NUM_FRAMES):
        push(server.client, stream, 10 * number + at, at)
    return asked(server.client, stream, max_tokens=12)


def chat(server, number: int) -> str:
    messages = [{"role": "user", "content": f"word{number} says the sign " * number}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 12}
    response = server.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def quiet_stream(number: int) -> str:
    session = StreamSession(tiny_model(), tiny_processor())
    for at in range(NUM_FRAMES):
        session.observe(picture(10 * number + at), at=float(at))
    return session.ask("word", max_new_tokens=12)


def quiet_chat(number: int) -> str:
    session = ChatSession(tiny_model(), tiny_processor())
    return session.say(f"word{number} says the sign " * number, max_new_tokens=12)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clients_of_all_kinds_are_served_for_a_minute() -> None:
    told = soak(num_clients=32, seconds=60)
    assert told["answers of streams"] and told["chats"] and told["slow readers"] and told["left early"]


def test_answers_are_those_of_a_quiet_engine() -> None:
    numbers = range(1, NUM_CLIENTS + 1)
    with running(tiny_engine(num_slots=6)) as server, ThreadPoolExecutor(2 * NUM_CLIENTS) as clients:
        streams = [clients.submit(watch_and_ask, server, number) for number in numbers]
        chats = [clients.submit(chat, server, number) for number in numbers]
        answers = [each.result() for each in streams], [each.result() for each in chats]
    assert answers[0] == [quiet_stream(number) for number in numbers]
    assert answers[1] == [quiet_chat(number) for number in numbers]
