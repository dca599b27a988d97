"""Parts of the server at the same time: rules, parking on disk, realtime, log-probabilities, forks, ends."""

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from websockets.sync.client import connect

from infinitevl.server.settings import Limits
from tests.server.serving import (
    MODEL,
    Running,
    asked,
    opened,
    picture,
    png,
    push,
    running,
    tiny_engine,
    until,
)
from tests.server.test_streams import quiet
from tests.server.watching import add_rule, answered_by, rule_of, yes_at

FRAMES = 4


def quiet_answer(seeds, **kwargs) -> str:
    return quiet(seeds, [float(at) for at in range(len(seeds))], **kwargs).ask("word", max_new_tokens=8)


def all_free(server: Running) -> bool:
    worker = server.context.worker
    resident = sum(not stream.session.is_parked for stream in worker.streams.values())
    return worker.engine.pool.num_free + resident == worker.engine.pool.num_slots


def test_rules_of_more_streams_than_slots_parked_on_disk_change_no_answer(tmp_path: Path) -> None:
    with running(tiny_engine(num_slots=3), state_dir=tmp_path, park_memory=0, save_every=0.05) as server:
        streams = [opened(server.client) for _ in range(6)]
        for number, stream in enumerate(streams):
            for _ in range(2):
                add_rule(server.client, stream, every=1 + number % 2)

        def watch(number: int) -> str:
            for at in range(FRAMES):
                assert push(server.client, streams[number], 10 * number + at, at).status_code == 200
            return asked(server.client, streams[number])

        def chat() -> list[dict]:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "word"}], "max_tokens": 8}
            body |= {"logprobs": True, "top_logprobs": 2}
            return [
                server.client.post("/v1/chat/completions", json=body).json()["choices"][0] for _ in range(4)
            ]

        with ThreadPoolExecutor(8) as clients:
            chats = [clients.submit(chat) for _ in range(2)]
            answers = [each.result() for each in [clients.submit(watch, number) for number in range(6)]]
            chatted = [choice for each in chats for choice in each.result()]
        assert answers == [quiet_answer([10 * n + at for at in range(FRAMES)]) for n in range(6)]
        assert all(choice == chatted[0] for choice in chatted)
        held = server.context.worker

        def num_concerned() -> int:
            return sum(held.answering.rules.concerns(stream) for stream in held.streams.values())

        until(lambda: held.call(num_concerned).result() == 0)  # between two steps
        shown = [rule for s in streams for rule in server.client.get(f"/v1/streams/{s}/rules").json()["data"]]
        assert all(rule["asked"] and rule["asked"] + rule["skipped"] <= FRAMES for rule in shown)
        on_disk = [server.client.get(f"/v1/streams/{s}").json()["parked"] for s in streams]
        assert "disk" in on_disk
        for stream in streams:
            assert server.client.delete(f"/v1/streams/{stream}").status_code == 200
        assert server.context.worker.engine.pool.num_free == 3
        assert not list((tmp_path / "rules").iterdir())


@pytest.mark.parametrize("act", ["delete", "fill", "fork", "save", "end"])
def test_what_is_done_to_a_stream_while_its_rule_is_asked(act: str, tmp_path: Path) -> None:
    with running(state_dir=tmp_path) as server:
        other = opened(server.client)
        push(server.client, other, 7, 0.0)
        saved = server.client.get(f"/v1/streams/{other}/state").content
        stream = opened(server.client)
        rule = add_rule(server.client, stream)
        asking, go_on = server.context.worker.answering.rules, threading.Event()
        collect = asking.collect
        asking.collect = lambda: collect() if go_on.is_set() else None
        push(server.client, stream, 0, 0.0)
        until(lambda: asking.num_slots == 1)
        path = f"/v1/streams/{stream}"
        if act == "delete":
            assert server.client.delete(path).status_code == 200
        elif act == "fill":
            assert server.client.put(f"{path}/state", content=saved).status_code == 200
        elif act == "fork":
            fork = server.client.post(f"{path}/fork").json()["id"]
            assert asked(server.client, fork) == quiet_answer([0])
            assert server.client.get(f"/v1/streams/{fork}/rules").json()["data"] == []
        elif act == "save":
            assert server.client.get(f"{path}/state").status_code == 200
        else:
            assert server.client.delete(f"{path}/rules/{rule['id']}").status_code == 200
        if act in ("delete", "fill", "end"):
            until(lambda: asking.num_slots == 0)
        go_on.set()
        until(lambda: asking.num_slots == 0)
        if act == "fill":
            assert rule_of(server.client, stream)["asked"] == 0
            push(server.client, stream, 1, 1.0)
            until(lambda: rule_of(server.client, stream)["asked"] == 1)
            assert asked(server.client, stream) == quiet_answer([7, 1])
        elif act in ("fork", "save"):
            until(lambda: rule_of(server.client, stream)["asked"] == 1)
            assert asked(server.client, stream) == quiet_answer([0])
        until(lambda: all_free(server))


def test_choices_with_stops_and_log_probabilities_beside_parked_streams_are_those_of_a_quiet_server() -> None:
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": "word says the sign"}], "max_tokens": 12,
        "n": 3, "logprobs": True, "top_logprobs": 3, "temperature": 1.0, "seed": 5,
    }  # fmt: skip
    with running(tiny_engine(num_slots=5)) as server:
        alone = server.client.post("/v1/chat/completions", json=body).json()["choices"]
        stop = alone[0]["message"]["content"][3:5]
        stopped = server.client.post("/v1/chat/completions", json=body | {"stop": stop}).json()["choices"]
    with running(tiny_engine(num_slots=5), park_memory=0) as server:
        streams = [opened(server.client, keep_turns=number % 2 == 1) for number in range(6)]
        for stream in streams:
            add_rule(server.client, stream, every=1)

        def watch(number: int) -> list[str]:
            answers = []
            for at in range(2):
                push(server.client, streams[number], 10 * number + at, at)
                answers.append(asked(server.client, streams[number]))
            return answers

        def chat(more: dict) -> list:
            found = []
            for _ in range(2):
                response = server.client.post("/v1/chat/completions", json=body | more)
                if response.status_code == 200:
                    found.append(response.json()["choices"])
                else:
                    assert response.status_code == 429
            return found

        with ThreadPoolExecutor(8) as clients:
            chats = [clients.submit(chat, more) for more in ({}, {"stop": stop})]
            answers = [each.result() for each in [clients.submit(watch, number) for number in range(6)]]
            found = [each.result() for each in chats]
    for number, got in enumerate(answers):
        session, wanted = quiet([], [], keep_turns=number % 2 == 1), []
        for at in range(2):
            session.observe(picture(10 * number + at), at=float(at))
            wanted.append(session.ask("word", max_new_tokens=8))
        assert got == wanted
    assert found[0] and all(choices == alone for choices in found[0])
    assert found[1] and all(choices == stopped for choices in found[1])


def test_realtime_sessions_with_rules_are_parked_and_come_back_after_a_restart(tmp_path: Path) -> None:

    def say(socket, text: str, seed: int, at: float) -> str:
        url = "data:image/png;base64," + base64.b64encode(png(seed)).decode()
        content = [
            {"type": "input_image", "image_url": url, "time": at},
            {"type": "input_text", "text": text},
        ]
        item = {"type": "message", "role": "user", "content": content}
        socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        socket.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": 8}}))
        while True:
            event = json.loads(socket.recv(timeout=30))
            assert event["type"] != "error", event
            if event["type"] == "response.done":
                return event["response"]["output"][0]["content"][0]["text"]

    def ws(server: Running) -> str:
        return server.url.replace("http", "ws") + "/v1/realtime"

    sessions, answers = [], [[] for _ in range(4)]
    with running(tiny_engine(num_slots=3), state_dir=tmp_path, park_memory=0) as server:
        for _ in range(4):
            with connect(ws(server)) as socket:
                session = json.loads(socket.recv())["session"]
                sessions.append(session["id"])
                add_rule(server.client, session["stream"]["id"])
        for at in range(2):
            for number, session in enumerate(sessions):
                with connect(f"{ws(server)}?session_id={session}") as socket:
                    answers[number].append(say(socket, "word", 10 * number + at, float(at)))
    with running(tiny_engine(num_slots=3), state_dir=tmp_path, park_memory=0) as server:
        for number, session in enumerate(sessions):
            with connect(f"{ws(server)}?session_id={session}") as socket:
                answers[number].append(say(socket, "word", 10 * number + 2, 2.0))
            rule = rule_of(server.client, "stream_" + session.removeprefix("sess_"))
            assert rule["asked"] + rule["skipped"] >= 2
    for number, got in enumerate(answers):
        alone, wanted = quiet([], [], keep_turns=True), []
        for at in range(3):
            alone.observe(picture(10 * number + at), at=float(at))
            wanted.append(alone.ask("word", max_new_tokens=8))
        assert got == wanted


def test_the_rules_of_a_key_are_limited_over_all_its_streams() -> None:
    with running(limits=Limits(rules_per_key=5)) as server:
        streams = [opened(server.client) for _ in range(3)]
        body = {"question": "word", "every": 1}
        with ThreadPoolExecutor(8) as clients:
            said = list(
                clients.map(
                    lambda n: server.client.post(f"/v1/streams/{streams[n % 3]}/rules", json=body), range(12)
                )
            )
        assert sorted(each.status_code for each in said) == [200] * 5 + [429] * 7
        server.client.delete(f"/v1/streams/{streams[0]}")
        assert server.client.post(f"/v1/streams/{streams[1]}/rules", json=body).status_code == 200


def test_a_followed_file_is_watched_by_rules_and_loses_no_frame(tmp_path: Path) -> None:

    frames = [Image.fromarray(picture(seed)) for seed in range(8)]
    file = tmp_path / "film.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=1000)
    with running(tiny_engine(num_slots=3), folders=(tmp_path,)) as server:
        answered_by(server, yes_at(*range(1, 100)))
        stream = opened(server.client, source=f"file://{file}", fps=1, queue_size=1)
        add_rule(server.client, stream, every=2)
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["source_status"] != "running")
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["frames"] == len(frames))
        shown = server.client.get(f"/v1/streams/{stream}").json()
        assert (shown["source_status"], shown["source_error"], shown["dropped"]) == ("ended", None, 0)
        push(server.client, stream, 9)
        until(lambda: rule_of(server.client, stream)["is_on"])
        assert asked(server.client, stream) == quiet_answer([*range(len(frames)), 9])
