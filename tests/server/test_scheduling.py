"""What one round of the worker does, and for whom."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.server.serving import Running, asked, opened, push, running, tiny_engine, until

LONG = "word says the sign " * 400


@pytest.fixture(scope="module")
def server():
    with running(tiny_engine(num_slots=6)) as started:
        yield started


def piece_sizes(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The slot and the number of tokens of each text that is read from now on."""
    runner, sizes = server.context.worker.engine.runner, []
    read = runner.read

    def noted(slot, token_ids):
        sizes.append((slot.index, len(token_ids)))
        return read(slot, token_ids)

    monkeypatch.setattr(runner, "read", noted)
    return sizes


def test_a_long_question_is_read_in_pieces(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = opened(server.client)
    push(server.client, stream, 0, 0)
    sizes = piece_sizes(server, monkeypatch)
    asked(server.client, stream, LONG)
    most = server.context.worker.answering.piece + 1  # and the end of the span
    assert max(size for _, size in sizes) <= most and sum(size for _, size in sizes) > 10 * most


def test_long_questions_are_read_in_turn_and_hold_up_no_short_one(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [opened(server.client) for _ in range(3)]
    for stream in streams:
        push(server.client, stream, 0, 0)
    sizes, hold = piece_sizes(server, monkeypatch), threading.Event()
    server.context.worker.call(hold.wait)  # until all have come
    with ThreadPoolExecutor(3) as clients:
        questions = [LONG, LONG + "once more", "word"]
        answers = []
        for number, (stream, question) in enumerate(zip(streams, questions, strict=True)):
            answers.append(clients.submit(asked, server.client, stream, question))
            until(lambda count=number + 1: len(server.context.worker.answering.waiting) == count)
        hold.set()
        assert all(answer.result() for answer in answers)
    order = [slot for slot, size in sizes if size > 1]
    slots = list(dict.fromkeys(order))  # two long ones, one short
    assert len(slots) == 3
    assert order[:2] == slots[:2] and slots[2] in order[:4], "the short one waits for two pieces"
    assert all(first != second for first, second in pairwise(order[4:20])), "in turn"


def test_metrics_tell_the_slowest_stream_from_the_fastest(server: Running) -> None:
    for stream in server.client.get("/v1/streams").json()["data"]:
        server.client.delete(f"/v1/streams/{stream['id']}")
    slow, fast, quiet = (opened(server.client) for _ in range(3))
    push(server.client, slow, 0)
    for seed in range(4):
        push(server.client, fast, seed)
    lines = server.client.get("/metrics").text.splitlines()
    rates = dict(line.rsplit(" ", 1) for line in lines if "stream_frames_per_second{" in line)
    values = [
        float(rates[f'infinitevl_stream_frames_per_second{{stream="{w}"}}']) for w in ("slowest", "fastest")
    ]
    assert (
        values == [0.2, 0.8] and len(rates) == 3
    )  # over five seconds; the one without frames does not count
    assert not any(stream in line for stream in (slow, fast, quiet) for line in lines)


def test_tokens_are_counted_while_answers_grow(server: Running) -> None:
    def tokens() -> float:
        lines = server.client.get("/metrics").text.splitlines()
        return float(next(x for x in lines if x.startswith("infinitevl_answer_tokens_total")).split()[1])

    stream = opened(server.client)
    push(server.client, stream, 0)
    before = tokens()
    response = server.client.post(f"/v1/streams/{stream}/ask", json={"question": "word", "max_tokens": 7})
    assert tokens() - before == response.json()["usage"]["completion_tokens"] > 0
