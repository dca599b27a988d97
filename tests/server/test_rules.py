"""Watch rules of streams: what they ask and when, their events and pictures, limits, owners, restarts."""

import io
import json
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from infinitevl.engine.rules import RuleState, WatchRule
from infinitevl.server import events as events_module
from infinitevl.server.settings import Limits
from tests.server.serving import (
    Running,
    asked,
    endless_engine,
    error_of,
    opened,
    picture,
    png,
    push,
    running,
    tiny_engine,
    until,
)
from tests.server.test_restart import Process
from tests.server.test_streams import quiet
from tests.server.watching import add_rule, answered_by, events_of, rule_of, show, yes_at

RULE_FIELDS = {
    "id", "object", "stream", "name", "question", "every", "expect", "confirm", "release", "cooldown",
    "webhook", "is_on", "asked", "skipped", "events", "last_answer", "last_time",
}  # fmt: skip
EVENT_FIELDS = {
    "id", "object", "stream", "rule", "name", "question", "answer", "time", "frame", "created", "picture",
}  # fmt: skip


def test_a_rule_finds_what_a_quiet_stream_would_say_and_leaves_the_stream_as_it_is(server: Running) -> None:
    stream, times = opened(server.client), [0.0, 0.4, 1.0, 1.7, 2.0, 5.5]
    alone = quiet([], [])
    state, wanted, answers = RuleState(WatchRule("word", 1.0)), 0, []
    rule = add_rule(server.client, stream, name="a word")
    assert set(rule) == RULE_FIELDS and rule["is_on"] is False and rule["webhook"] is None
    for seed, at in enumerate(times):
        push(server.client, stream, seed, at)
        alone.observe(picture(seed), at=at)
        if state.is_due(at):
            state.note_asked(at)
            wanted += 1
            answers.append(alone.ask("word", max_new_tokens=16))
            until(lambda count=wanted: rule_of(server.client, stream)["asked"] == count)
            shown = rule_of(server.client, stream)
            assert (shown["last_answer"], shown["last_time"]) == (answers[-1], at)
    assert wanted == 4 and len(set(answers)) > 1
    assert asked(server.client, stream) == alone.ask("word", max_new_tokens=8)


def test_an_event_has_its_frame_and_comes_once_until_the_rule_was_off_again() -> None:
    with running() as own:
        answered_by(own, yes_at(2, 3, 5))
        stream = opened(own.client)
        rule = add_rule(own.client, stream, name="sign", question="Is it?")
        show(own, stream, 1, 6)
        first, second = events_of(own.client, stream, 2)
        assert set(first) == EVENT_FIELDS and first["object"] == "stream.event"
        assert [(event["time"], event["frame"]) for event in (first, second)] == [(1.0, 2), (4.0, 5)]
        assert (first["stream"], first["rule"], first["name"]) == (stream, rule["id"], "sign")
        assert (first["question"], first["answer"]) == ("Is it?", "Yes.")
        response = own.client.get(second["picture"])
        assert response.headers["content-type"] == "image/jpeg"
        shown = Image.open(io.BytesIO(response.content))
        seen = Image.open(io.BytesIO(events_module.to_jpeg(picture(5))))
        assert shown.size == seen.size and shown.tobytes() == seen.tobytes()
        assert events_of(own.client, stream, 1, after=first["id"]) == [second]
        assert events_of(own.client, stream, 2, after="event_of_long_ago") == [first, second]
        metrics = own.client.get("/metrics").text
        assert "infinitevl_events_total 2.0" in metrics and "infinitevl_rules_asked_total 6.0" in metrics


def test_confirm_release_and_cooldown_hold() -> None:
    with running() as own:
        answered_by(own, yes_at(2, 4, 5, 7, 8, 9, 12, 13, 14))
        stream = opened(own.client)
        add_rule(own.client, stream, confirm=2, release=2, cooldown=8.5)
        show(own, stream, 1, 14)
        assert [event["frame"] for event in events_of(own.client, stream, 2)] == [5, 14]
        assert rule_of(own.client, stream)["is_on"] is True


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"question": " "}, "question"),
        ({"question": "x" * 10_000}, "question"),
        ({"every": 0.05}, "every"),
        ({"every": "soon"}, "every"),
        ({"expect": "?"}, "expect"),
        ({"expect": ""}, "expect"),
        ({"confirm": 0}, "confirm"),
        ({"release": 10**9}, "release"),
        ({"cooldown": -1}, "cooldown"),
        ({"until": 5}, "until"),
        ({"webhook": "http://example.com"}, "webhook"),
        ({"webhook": {"url": "ftp://example.com/x"}}, "webhook.url"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(server: Running, wrong: dict, param: str | None) -> None:
    stream = opened(server.client)
    body = {"question": "word", "every": 1, **wrong}
    error = error_of(server.client.post(f"/v1/streams/{stream}/rules", json=body), 400)
    assert error["param"] == param
    assert server.client.get(f"/v1/streams/{stream}/rules").json() == {"object": "list", "data": []}


def test_every_is_a_number(server: Running) -> None:
    stream = opened(server.client)
    for text in ("NaN", "Infinity", "1e999", "-1"):
        content = f'{{"question": "word", "every": {text}}}'
        headers = {"content-type": "application/json"}
        response = server.client.post(f"/v1/streams/{stream}/rules", content=content, headers=headers)
        assert error_of(response, 400), text


def test_rules_end_alone_and_with_their_stream(server: Running) -> None:
    stream = opened(server.client)
    first, second = add_rule(server.client, stream), add_rule(server.client, stream, every=0.5)
    address = f"/v1/streams/{stream}/rules"
    assert server.client.delete(f"{address}/{first['id']}").json()["deleted"] is True
    assert error_of(server.client.delete(f"{address}/{first['id']}"), 404)["code"] == "rule_not_found"
    assert [rule["id"] for rule in server.client.get(address).json()["data"]] == [second["id"]]
    fork = server.client.post(f"/v1/streams/{stream}/fork").json()["id"]
    assert server.client.get(f"/v1/streams/{fork}/rules").json()["data"] == []
    server.client.delete(f"/v1/streams/{stream}")
    assert error_of(server.client.get(address), 404)["code"] == "stream_not_found"
    assert error_of(server.client.post(address, json={"question": "x", "every": 1}), 404)
    assert stream not in server.context.worker.answering.rules.rules


def test_another_state_starts_the_rules_anew() -> None:
    with running() as own:
        answered_by(own, yes_at(1, 2, 3, 4, 5, 6, 7))
        stream = opened(own.client)
        add_rule(own.client, stream)
        show(own, stream, 1, 1)
        state = own.client.get(f"/v1/streams/{stream}/state").content
        show(own, stream, 2, 4)
        own.client.put(f"/v1/streams/{stream}/state", content=state)
        assert rule_of(own.client, stream)["is_on"] is False
        push(own.client, stream, 2, 1.0)
        assert [event["time"] for event in events_of(own.client, stream, 2)] == [0.0, 1.0]


def test_too_many_rules_are_refused_until_one_is_deleted() -> None:
    with running(limits=Limits(rules_per_stream=2, rules_per_key=3)) as own:
        one, two = opened(own.client), opened(own.client)
        first = add_rule(own.client, one)
        add_rule(own.client, one)
        add_rule(own.client, two)
        for stream in (one, two):
            response = own.client.post(f"/v1/streams/{stream}/rules", json={"question": "x", "every": 1})
            assert error_of(response, 429)["code"] == "busy"
        own.client.delete(f"/v1/streams/{one}/rules/{first['id']}")
        add_rule(own.client, two)


def test_rules_and_events_of_one_key_are_not_those_of_another() -> None:
    keys = ("first-key", "second-key")
    with running(keys=keys) as own, own.client_of(keys[0]) as one, own.client_of(keys[1]) as two:
        answered_by(own, yes_at(1))
        stream = opened(one)
        rule = add_rule(one, stream)
        push(one, stream, 1, 0.0)
        (event,) = events_of(one, stream, 1)
        address = f"/v1/streams/{stream}"
        for response in (
            two.get(f"{address}/rules"),
            two.post(f"{address}/rules", json={"question": "x", "every": 1}),
            two.delete(f"{address}/rules/{rule['id']}"),
            two.get(f"{address}/events"),
            two.get(f"{address}/events", headers={"accept": "text/event-stream"}),
            two.get(event["picture"]),
        ):
            assert error_of(response, 404)["code"] == "stream_not_found"
        assert error_of(own.client.get(f"{address}/events"), 401)
        assert error_of(one.get(f"{address}/events/event_x/picture"), 404)["code"] == "picture_not_found"


def test_history_and_pictures_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(events_module, "MAX_EVENTS", 6)
    monkeypatch.setattr(events_module, "MAX_PICTURES", 3)
    with running() as own:
        answered_by(own, lambda frame: "yes" if frame % 2 else "no")
        stream = opened(own.client)
        add_rule(own.client, stream)
        show(own, stream, 1, 16)
        until(lambda: own.client.get(f"/v1/streams/{stream}/events").json()["data"][-1]["frame"] == 15)
        found = own.client.get(f"/v1/streams/{stream}/events").json()["data"]
        assert [event["frame"] for event in found] == [5, 7, 9, 11, 13, 15]
        statuses = [own.client.get(event["picture"]).status_code for event in found]
        assert statuses == [404] * 3 + [200] * 3
        log = own.context.rules.events
        monkeypatch.setattr(events_module, "MAX_PICTURE_BYTES", 1)
        log._keep_picture(stream, "event_last", b"12")
        assert not log._pictures and log._num_bytes == 0


def test_a_large_frame_is_shown_small() -> None:
    import numpy as np

    jpeg = events_module.to_jpeg(np.zeros((900, 3000, 3), np.uint8))
    assert Image.open(io.BytesIO(jpeg)).size == (512, 154)


def test_frames_and_questions_go_before_rules_and_rules_do_not_starve(monkeypatch) -> None:
    """Three slots: one answer at a time. Users' answers, one after the other, take it all the time."""
    monkeypatch.setattr("infinitevl.server.rule_asking._PATIENCE", 0.2)
    with running(tiny_engine(num_slots=3), limits=Limits(answer_tokens=10**6)) as own:
        stream = opened(own.client)
        add_rule(own.client, stream, every=0.1)
        stop = threading.Event()

        def ask_on() -> None:
            with own.client_of("none") as client:
                while not stop.is_set():
                    body = {"question": "word", "max_tokens": 200}
                    client.post(f"/v1/streams/{stream}/ask", json=body)

        push(own.client, stream, 0, 0.0)
        users = [threading.Thread(target=ask_on) for _ in range(3)]
        for user in users:
            user.start()
        deadline, at = time.monotonic() + 20, 1
        while rule_of(own.client, stream)["asked"] < 2:
            assert time.monotonic() < deadline, "the rule starves"
            push(own.client, stream, at, float(at))
            at += 1
        stop.set()
        for user in users:
            user.join()
        shown = rule_of(own.client, stream)
        assert (
            shown["asked"] + shown["skipped"] + 1 >= at
        )  # each frame was due: asked, or skipped and counted


def test_a_rule_that_is_still_asked_when_it_is_due_again_is_skipped_and_counted() -> None:
    with running(endless_engine()) as own:
        asking, stream = own.context.worker.answering.rules, opened(own.client)
        add_rule(own.client, stream)
        take, hold = asking.on_answer, threading.Event()
        collect, asking.collect = asking.collect, lambda: collect() if hold.is_set() else None
        for at in range(4):
            push(own.client, stream, at, float(at))  # frames go on meanwhile
        assert rule_of(own.client, stream)["skipped"] == 3
        seen = []
        asking.on_answer = lambda rule, sight, text: (seen.append(sight.frame), take(rule, sight, text))
        hold.set()
        until(lambda: rule_of(own.client, stream)["asked"] == 1)
        shown = rule_of(own.client, stream)
        assert seen == [1] and shown["last_time"] == 0.0
        assert shown["last_answer"] == quiet([0], [0.0]).ask("word", max_new_tokens=16)


def test_a_stream_that_keeps_its_turns_does_not_keep_those_of_rules(server: Running) -> None:
    stream = opened(server.client, keep_turns=True)
    add_rule(server.client, stream)
    alone = quiet([], [], keep_turns=True)
    for number in range(1, 4):
        show(server, stream, number, number)
        alone.observe(picture(number), at=number - 1.0)
        assert asked(server.client, stream) == alone.ask("word", max_new_tokens=8)
    assert server.client.get(f"/v1/streams/{stream}").json()["tokens"] == alone.stats().tokens


def test_more_streams_than_slots_have_rules() -> None:
    with running(tiny_engine(num_slots=3)) as own:
        answered_by(own, yes_at(2))
        streams = [opened(own.client) for _ in range(5)]
        for stream in streams:
            add_rule(own.client, stream)
        for number in (1, 2, 3):
            for stream in streams:
                show(own, stream, number, number)
        for stream in streams:
            assert [event["frame"] for event in events_of(own.client, stream, 1)] == [2]


# ------ a log, and a restart


def test_events_are_lines_of_the_log_and_rules_come_back_as_they_were(tmp_path: Path, caplog) -> None:
    with caplog.at_level("INFO", "infinitevl.events"), running(state_dir=tmp_path) as own:
        answered_by(own, yes_at(2, 3))
        stream, other = opened(own.client), opened(own.client)
        kept = add_rule(own.client, stream, name="ünï", expect="yes", cooldown=2)
        gone = add_rule(own.client, stream)
        add_rule(own.client, other)
        show(own, stream, 1, 3)
        own.client.delete(f"/v1/streams/{stream}/rules/{gone['id']}")
        own.client.delete(f"/v1/streams/{other}")
        found = events_of(own.client, stream, 2)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found
    logged = [record.message for record in caplog.records if record.name == "infinitevl.events"]
    assert [json.loads(message) for message in logged] == found
    files = list((tmp_path / "rules").iterdir())
    assert [file.name for file in files] == [f"{stream}.json"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in [*files, tmp_path / "rules"])
    with running(state_dir=tmp_path) as own:
        answered_by(own, yes_at(4, 6))
        shown = rule_of(own.client, stream)
        assert shown["id"] == kept["id"] and shown["name"] == "ünï" and shown["is_on"] is True
        assert (shown["asked"], shown["events"]) == (3, 1)
        show(own, stream, 4, 6)  # on, off, on
        assert [event["frame"] for event in events_of(own.client, stream, 1)] == [6]
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 3


def test_a_stream_that_lost_its_last_frames_is_asked_about_them_again(tmp_path: Path) -> None:
    with running(state_dir=tmp_path, save_every=1000) as own:
        answered_by(own, yes_at())
        stream = opened(own.client)
        add_rule(own.client, stream)
        show(own, stream, 1, 4)
        rules = (tmp_path / "rules" / f"{stream}.json").read_text()
    record = json.loads(rules)
    record[0]["state"] |= {"asked_in": 90, "is_on": False}  # as of a later moment than the state
    (tmp_path / "rules" / f"{stream}.json").write_text(json.dumps(record))
    with running(state_dir=tmp_path) as own:
        answered_by(own, yes_at(5))
        show(own, stream, 5, 5)
        events_of(own.client, stream, 1)


@pytest.mark.parametrize("damage", ["", "{", "[1]", '[{"rule": 3}]', "{}", "[null]"])
def test_damaged_rules_do_not_keep_a_stream_from_coming_back(tmp_path: Path, damage: str) -> None:
    with running(state_dir=tmp_path) as own:
        stream = opened(own.client)
        add_rule(own.client, stream)
    (tmp_path / "rules" / f"{stream}.json").write_text(damage)
    with running(state_dir=tmp_path) as own:
        assert own.client.get(f"/v1/streams/{stream}/rules").json()["data"] == []
        add_rule(own.client, stream)
    aside = tmp_path / "rules" / f"{stream}.damaged"
    assert aside.exists() == (damage in ("", "{", "{}")) and (
        not aside.exists() or aside.read_text() == damage
    )


def test_frames_that_come_fast_are_each_read_with_rules(server: Running) -> None:
    stream = opened(server.client, queue_size=64)
    for every in (0.1, 0.2, 0.5):
        add_rule(server.client, stream, every=every)
    files = [("frame", (f"{seed}.png", png(seed), "image/png")) for seed in range(40)]
    times = {"time": [str(seed / 10) for seed in range(40)]}
    response = server.client.post(
        f"/v1/streams/{stream}/frames", files=files, data=times, params={"wait": True}
    )
    assert response.json()["accepted"] == 40
    rules = server.client.get(f"/v1/streams/{stream}/rules").json()["data"]
    until(lambda: not server.context.worker.answering.rules.has_work)
    due = [rule["asked"] + rule["skipped"] for rule in rules]
    assert all(0 < count <= wanted for count, wanted in zip(due, (40, 20, 8), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_kill_9_a_rule_is_there_and_on(tmp_path: Path) -> None:
    process = Process("--state-dir", tmp_path)
    stream, other = opened(process.client), opened(process.client)
    push(process.client, other, 0)
    said = asked(process.client, other, "What is on the picture now?", max_tokens=16)
    rule = add_rule(process.client, stream, question="What is on the picture now?", expect=said)
    push(process.client, stream, 0)
    until(lambda: rule_of(process.client, stream)["events"] == 1)
    file = tmp_path / "rules" / f"{stream}.json"
    until(lambda: json.loads(file.read_text())[0]["state"]["is_on"])
    process.end(signal.SIGKILL)
    process = Process("--state-dir", tmp_path)
    found = rule_of(process.client, stream)
    assert found["id"] == rule["id"] and found["is_on"] is True and found["events"] == 1
    process.end(signal.SIGTERM)
