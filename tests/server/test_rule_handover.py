"""Rules of a stream that goes from one server to another: none lost, none asked or written by two servers."""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from infinitevl.server.rule_files import RuleFiles
from infinitevl.server.settings import Retries
from tests.server.serving import asked, error_of, opened, push, running, until
from tests.server.test_leases import adopt
from tests.server.test_streams import quiet
from tests.server.watching import (
    add_rule,
    after,
    answered_by,
    events_of,
    receiving,
    replying,
    rule_of,
    show,
    yes_at,
)

LATER = Retries(first=60.0, timeout=5.0)


def file_of(folder: Path, stream: str) -> Path:
    return folder / "rules" / f"{stream}.json"


def test_rules_go_on_where_they_were_and_come_back(tmp_path: Path) -> None:
    with running(state_dir=tmp_path) as old, running(state_dir=tmp_path, is_replica=True) as new:
        for server in (old, new):
            answered_by(server, yes_at(2, 3, 5))
        stream = opened(old.client)
        rule = add_rule(old.client, stream)
        show(old, stream, 1, 2)
        adopt(new, stream)
        found = rule_of(new.client, stream)
        assert (found["id"], found["is_on"], found["asked"], found["events"]) == (rule["id"], True, 2, 1)
        assert not old.context.worker.answering.rules.rules
        show(new, stream, 3, 4)
        assert new.client.get(f"/v1/streams/{stream}/events").json()["data"] == []  # it was on already
        adopt(old, stream)
        show(old, stream, 5, 5)
        assert [event["frame"] for event in events_of(old.client, stream, 1)] == [5]
        assert old.client.delete(f"/v1/streams/{stream}/rules/{rule['id']}").status_code == 200
        assert not file_of(tmp_path, stream).exists()
        adopt(new, stream)
        assert new.client.get(f"/v1/streams/{stream}/rules").json()["data"] == []
        assert asked(new.client, stream) == quiet(range(1, 6), map(float, range(5))).ask(
            "word", max_new_tokens=8
        )


def test_a_question_under_way_is_answered_before_its_stream_goes(tmp_path: Path) -> None:
    with running(state_dir=tmp_path) as old, running(state_dir=tmp_path, is_replica=True) as new:
        stream, go_on = opened(old.client), threading.Event()
        add_rule(old.client, stream, every=1000)
        asking = old.context.worker.answering.rules
        collect = asking.collect
        asking.collect = lambda: collect() if go_on.is_set() else None
        push(old.client, stream, 0, 0.0)
        until(lambda: asking.num_slots == 1)
        old_stream = old.context.worker.streams[stream]
        new.context.registry.keeper.leases.ask(stream)
        until(lambda: old_stream.is_leaving)
        error_of(old.client.post(f"/v1/streams/{stream}/rules", json={"question": "word", "every": 1}), 503)
        go_on.set()
        adopt(new, stream)
        found = rule_of(new.client, stream)
        assert found["asked"] == 1 and found["last_time"] == 0.0


def test_what_a_webhook_takes_late_writes_nothing_of_a_stream_that_went(tmp_path: Path) -> None:
    """The other server has the rules by then; an empty list would delete them."""
    is_sent, go_on = threading.Event(), threading.Event()

    def slowly(receiver, handler) -> None:
        is_sent.set()
        go_on.wait(10)
        replying(204)(receiver, handler)

    settings = {"state_dir": tmp_path, "allow_private": True, "retries": LATER}
    with (
        receiving(after(1, slowly, replying(204))) as hook,
        running(**settings) as old,
        running(**settings, is_replica=True) as new,
    ):
        answered_by(old, yes_at(1))
        stream = opened(old.client)
        rule = add_rule(old.client, stream, webhook={"url": hook.url})
        show(old, stream, 1, 1)
        assert is_sent.wait(10)
        made = old.context.rules.of(old.context.worker.streams[stream])[0]
        adopt(new, stream)
        until(lambda: len(hook.requests) == 2)  # the new server sends it again: at least once
        go_on.set()
        old.context.rules._note_sent(made)  # as of a webhook that took the event just before
        old.context.rules._files.put("stream_other", []).result()
        assert json.loads(file_of(tmp_path, stream).read_text())[0]["id"] == rule["id"]
        assert rule_of(new.client, stream)["id"] == rule["id"]


def test_who_lost_a_lease_does_not_write_the_rules(tmp_path: Path) -> None:
    with running(state_dir=tmp_path, save_every=0.05) as server:
        stream = opened(server.client)
        add_rule(server.client, stream)
        (tmp_path / "streams" / f"{stream}.lease").unlink()
        file_of(tmp_path, stream).write_text("of another server")
        push(server.client, stream, 0)
        until(lambda: stream not in server.context.worker.streams)
        until(lambda: not server.context.worker.answering.rules.rules)
    assert file_of(tmp_path, stream).read_text() == "of another server"


def test_a_rule_of_a_stream_that_went_cannot_be_ended_where_it_was(tmp_path: Path) -> None:
    with running(state_dir=tmp_path) as old, running(state_dir=tmp_path, is_replica=True) as new:
        stream = opened(old.client)
        add_rule(old.client, stream)
        held = old.context.worker.streams[stream]
        rule = old.context.rules.of(held)[0]
        adopt(new, stream)
        with pytest.raises(Exception, match="on its way"):
            asyncio.run(old.context.rules.end(held, rule))
        assert rule_of(new.client, stream)["id"] == rule.id


def test_rules_are_there_before_anything_else_is_done_with_an_adopted_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that is added at once neither replaces those that were kept nor is there twice."""
    with running(state_dir=tmp_path) as old:
        stream = opened(old.client)
        first = add_rule(old.client, stream, name="first")
    is_loading, load = threading.Event(), RuleFiles.load

    def slowly(files: RuleFiles, stream_id: str):
        is_loading.set()
        until(lambda: waiting.is_set(), 10)
        return load(files, stream_id)

    waiting = threading.Event()
    monkeypatch.setattr(RuleFiles, "load", slowly)
    with running(state_dir=tmp_path, is_replica=True) as new:
        adopting = threading.Thread(target=adopt, args=(new, stream))
        adopting.start()
        assert is_loading.wait(10)
        adding = threading.Thread(target=add_rule, args=(new.client, stream), kwargs={"name": "second"})
        adding.start()
        threading.Timer(0.2, waiting.set).start()
        adopting.join(20)
        adding.join(20)
        names = [rule["name"] for rule in new.client.get(f"/v1/streams/{stream}/rules").json()["data"]]
        assert names == ["first", "second"]
        kept = json.loads(file_of(tmp_path, stream).read_text())
        assert [rule["name"] for rule in kept] == names and kept[0]["id"] == first["id"]


def test_a_server_that_ends_writes_its_rules_before_others_may_have_them(tmp_path: Path, monkeypatch) -> None:
    order, put = [], RuleFiles._put
    with running(state_dir=tmp_path) as server:
        stream = opened(server.client)
        add_rule(server.client, stream)
        show(server, stream, 1, 1)
        leases = server.context.keeper.leases
        release = leases.release_all
        monkeypatch.setattr(leases, "release_all", lambda: (order.append("released"), release()))
        monkeypatch.setattr(
            RuleFiles, "_put", lambda files, *args: (order.append("written"), put(files, *args))
        )
    assert order == ["written", "released"]
    assert json.loads(file_of(tmp_path, stream).read_text())[0]["num_asked"] == 1


@pytest.mark.parametrize("is_due", [False, True])
def test_a_question_that_the_end_cut_short_is_asked_after_the_restart(tmp_path: Path, is_due: bool) -> None:
    with running(state_dir=tmp_path) as server:
        stream = opened(server.client)
        add_rule(server.client, stream, every=1000)
        asking = server.context.worker.answering.rules
        if is_due:
            asking.begin = lambda: None
        else:
            asking.collect = lambda: None
        push(server.client, stream, 0, 0.0)
        until(lambda: asking.concerns(server.context.worker.streams[stream]))
    with running(state_dir=tmp_path) as server:
        push(server.client, stream, 1, 1.0)
        until(lambda: rule_of(server.client, stream)["asked"] == 1)
        push(server.client, stream, 2, 2.0)
        assert rule_of(server.client, stream)["skipped"] == 0


@pytest.mark.parametrize("verb", ["add", "end"])
def test_a_full_disk_loses_no_rule_and_fails_no_other_call(tmp_path: Path, monkeypatch, verb: str) -> None:
    with running(state_dir=tmp_path) as server:
        stream = opened(server.client)
        rule = add_rule(server.client, stream)
        kept = add_rule(server.client, stream)

        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("infinitevl.files._sync", full)
            path = f"/v1/streams/{stream}/rules"
            if verb == "add":
                error = error_of(server.client.post(path, json={"question": "word", "every": 1}), 503)
                assert error["code"] == "disk_full"
            else:
                assert server.client.delete(f"{path}/{rule['id']}").status_code == 200
            push(server.client, stream, 0)
            until(lambda: rule_of(server.client, stream)["asked"] == 1)
        count = {"add": 2, "end": 1}[verb]
        assert len(server.client.get(path).json()["data"]) == count
        assert kept["id"] in {each["id"] for each in server.client.get(path).json()["data"]}
