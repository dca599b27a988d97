"""Streams: frames and their times, questions, forks, states, parking, sources, and whose they are."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import av
import pytest

from infinitevl.engine.session import StreamSession
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
from tests.support import tiny_model, tiny_processor


def quiet(seeds: list[int], times: list[float], **kwargs) -> StreamSession:
    """A session alone on an engine that has seen the same."""
    session = StreamSession(tiny_model(), tiny_processor(), **kwargs)
    for seed, at in zip(seeds, times, strict=True):
        session.observe(picture(seed), at=at)
    return session


def test_an_answer_is_that_of_a_quiet_engine(server: Running) -> None:
    stream = opened(server.client)
    for seed, at in enumerate([0.0, 0.5, 3.25]):
        assert push(server.client, stream, seed, at).json()["time"] == at
    wanted = quiet([0, 1, 2], [0.0, 0.5, 3.25]).ask("word", max_new_tokens=8)
    assert asked(server.client, stream) == wanted and wanted
    stats = server.client.get(f"/v1/streams/{stream}").json()
    assert (stats["frames"], stats["time"], stats["dropped"], stats["queued"]) == (3, 3.25, 0, 0)


def test_an_answer_comes_as_events_too(server: Running) -> None:
    stream = opened(server.client)
    push(server.client, stream, 1)
    body = {"question": "word", "max_tokens": 8, "stream": True}
    lines = [
        line[6:]
        for line in server.client.post(f"/v1/streams/{stream}/ask", json=body).text.split("\n\n")
        if line
    ]
    assert lines[-1] == "[DONE]"
    *pieces, answer = [json.loads(line) for line in lines[:-1]]
    assert "".join(piece["delta"] for piece in pieces) == answer["answer"] == asked(server.client, stream)
    assert answer["object"] == "stream.answer" and answer["frames"] == 1 and answer["usage"]["total_tokens"]


def test_frames_without_a_time_are_a_second_apart(server: Running) -> None:
    stream = opened(server.client)
    assert [push(server.client, stream, seed).json()["time"] for seed in range(3)] == [0.0, 1.0, 2.0]


def test_times_come_as_a_header_or_as_fields(server: Running) -> None:
    stream = opened(server.client)
    address = f"/v1/streams/{stream}/frames"
    headers = {"content-type": "image/png", "x-frame-time": "2.5"}
    assert server.client.post(address, content=png(0), headers=headers).json()["time"] == 2.5
    files = [("frame", (f"{seed}.png", png(seed), "image/png")) for seed in (1, 2, 3)]
    several = {"files": files, "data": {"time": ["3", "4", "4.5"]}, "params": {"wait": True}}
    response = server.client.post(address, **several).json()
    assert (response["accepted"], response["time"], response["dropped"]) == (3, 4.5, 0)
    wanted = quiet([0, 1, 2, 3], [2.5, 3, 4, 4.5]).ask("word", max_new_tokens=8)
    assert asked(server.client, stream) == wanted


@pytest.mark.parametrize("at", ["-1", "nan", "inf", "1e300", "soon"])
def test_a_time_that_cannot_be_is_refused(server: Running, at: str) -> None:
    stream = opened(server.client)
    push(server.client, stream, 0, 5.0)
    response = server.client.post(
        f"/v1/streams/{stream}/frames",
        params={"time": at},
        content=png(0),
        headers={"content-type": "image/png"},
    )
    assert error_of(response, 400)["param"] == "time"
    assert server.client.get(f"/v1/streams/{stream}").json()["frames"] == 1


def test_what_is_no_picture_is_refused(server: Running) -> None:
    stream = opened(server.client)
    address = f"/v1/streams/{stream}/frames"
    for content in (b"", b"hello", png(0)[:60]):
        response = server.client.post(address, content=content, headers={"content-type": "image/png"})
        assert error_of(response, 400)["code"] == "invalid_image"
    assert error_of(server.client.post(address, json={}), 415)
    assert error_of(server.client.post(address, data={"frame": "x"}), 415)
    assert error_of(server.client.post(address, files={"picture": png(0)}), 400)
    assert error_of(server.client.post(address, files={"frame": png(0)}, data={"time": ["1", "2"]}), 400)


def test_the_newest_frames_win_and_the_others_are_counted() -> None:
    with running() as server:
        stream = opened(server.client, queue_size=2)
        hold = threading.Event()
        server.context.worker.call(hold.wait)  # the engine is busy
        for seed in range(6):
            response = push(server.client, stream, seed, seed, wait=False).json()
        assert response["queued"] == 2 and response["dropped"] == 4
        hold.set()
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["queued"] == 0)
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["frames"] == 2)
        assert server.client.get(f"/v1/streams/{stream}").json()["dropped"] == 4
        assert asked(server.client, stream) == quiet([4, 5], [4, 5]).ask("word", max_new_tokens=8)
        assert "infinitevl_frames_dropped_total 4.0" in server.client.get("/metrics").text


def test_a_question_waits_for_the_frames_before_it(server: Running) -> None:
    stream, worker = opened(server.client, queue_size=8), server.context.worker
    hold = threading.Event()
    worker.call(hold.wait)  # the engine is busy
    for seed in range(4):
        push(server.client, stream, seed, seed, wait=False)
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(asked, server.client, stream)
        until(lambda: worker.answering.waiting)
        hold.set()
        assert answer.result() == quiet([0, 1, 2, 3], [0, 1, 2, 3]).ask("word", max_new_tokens=8)


def test_frames_go_on_while_a_long_answer_grows_and_a_long_prompt_is_read() -> None:
    with running(endless_engine(), limits=Limits(answer_tokens=10**6)) as server:
        stream = opened(server.client)
        push(server.client, stream, 0)
        body = {"question": "word", "max_tokens": 10**6, "stream": True}
        messages = [{"role": "user", "content": "word says " * 6000}]
        prompt = {"model": "tiny", "messages": messages, "max_tokens": 10**6, "stream": True}
        with (
            server.client.stream("POST", f"/v1/streams/{stream}/ask", json=body),
            server.client.stream("POST", "/v1/chat/completions", json=prompt),
        ):
            answering = server.context.worker.answering
            until(lambda: answering.reading)
            before = answering.reading[0].reader._num_read
            for seed in range(1, 6):
                assert push(server.client, stream, seed).json()["accepted"] == 1
            # The worker takes a job out of a list while it is at it, so one look may miss it.
            until(lambda: answering.growing and answering.reading)
            until(lambda: answering.reading and answering.reading[0].reader._num_read > before)


def test_a_stream_that_keeps_its_turns_takes_them_in(server: Running) -> None:
    stream = opened(server.client, keep_turns=True)
    push(server.client, stream, 0, 0)
    alone = quiet([0], [0.0], keep_turns=True)
    assert asked(server.client, stream) == alone.ask("word", max_new_tokens=8)
    push(server.client, stream, 1, 1)
    alone.observe(picture(1), at=1.0)
    assert asked(server.client, stream, "sign") == alone.ask("sign", max_new_tokens=8)
    assert server.client.get(f"/v1/streams/{stream}").json()["tokens"] == alone.stats().tokens
    body = {"question": "word", "stop": "a"}
    assert error_of(server.client.post(f"/v1/streams/{stream}/ask", json=body), 400)["param"] == "stop"


def test_a_fork_goes_its_own_way(server: Running) -> None:
    stream = opened(server.client)
    push(server.client, stream, 0, 0)
    fork = server.client.post(f"/v1/streams/{stream}/fork").json()
    assert fork["parent"] == stream and fork["frames"] == 1
    push(server.client, fork["id"], 1, 1)
    push(server.client, stream, 2, 1)
    assert asked(server.client, fork["id"]) == quiet([0, 1], [0, 1]).ask("word", max_new_tokens=8)
    assert asked(server.client, stream) == quiet([0, 2], [0, 1]).ask("word", max_new_tokens=8)


def test_more_streams_than_slots_come_back_exactly() -> None:
    with running(tiny_engine(num_slots=3)) as server:
        streams = [opened(server.client) for _ in range(7)]
        for at in range(3):
            for number, stream in enumerate(streams):
                push(server.client, stream, 10 * number + at, at)
        listed = server.client.get("/v1/streams").json()["data"]
        assert [each["id"] for each in listed] == streams and sum(each["resident"] for each in listed) <= 3
        for number, stream in enumerate(streams):
            seeds = [10 * number + at for at in range(3)]
            assert asked(server.client, stream) == quiet(seeds, [0, 1, 2]).ask("word", max_new_tokens=8)


def test_a_saved_state_comes_back_and_is_a_plain_state(server: Running, tmp_path) -> None:
    stream, other = opened(server.client), opened(server.client)
    push(server.client, stream, 0, 0)
    state = server.client.get(f"/v1/streams/{stream}/state").content
    push(server.client, other, 5, 7)
    filled = server.client.put(f"/v1/streams/{other}/state", content=state).json()
    assert (filled["frames"], filled["time"]) == (1, 0.0)
    wanted = quiet([0], [0.0]).ask("word", max_new_tokens=8)
    assert asked(server.client, other) == wanted
    assert push(server.client, other, 1, 0.5).status_code == 200
    file = tmp_path / "state.safetensors"
    file.write_bytes(state)
    loaded = StreamSession.load(file, tiny_model(), tiny_processor())
    assert loaded.ask("word", max_new_tokens=8) == wanted


def test_states_that_were_not_signed_or_were_changed_are_refused(server: Running, tmp_path) -> None:
    stream = opened(server.client)
    push(server.client, stream, 0, 0)
    address = f"/v1/streams/{stream}/state"
    signed = server.client.get(address).content
    file = tmp_path / "own.safetensors"
    quiet([1], [0.0]).save(file)
    assert error_of(server.client.put(address, content=file.read_bytes()), 403)["code"] == "unsigned_state"
    damaged = bytearray(signed)
    damaged[-100] ^= 1
    for content in (
        bytes(damaged),
        signed[:-50],
        signed[: len(signed) // 2],
        b"",
        b"\xff" * 64,
        signed + b"x",
    ):
        assert error_of(server.client.put(address, content=content), 400)["code"] == "invalid_state"
    assert server.client.get(f"/v1/streams/{stream}").json()["frames"] == 1
    with running(allow_unsigned_states=True) as trusting:
        other = opened(trusting.client)
        filled = trusting.client.put(f"/v1/streams/{other}/state", content=file.read_bytes())
        assert filled.json()["frames"] == 1


def test_nothing_of_one_key_is_readable_by_another() -> None:
    keys = ("first-key", "second-key")
    with running(keys=keys) as server, server.client_of(keys[0]) as one, server.client_of(keys[1]) as two:
        stream = opened(one)
        push(one, stream, 0, 0)
        address = f"/v1/streams/{stream}"
        ask = {"question": "word"}
        for response in (
            two.get(address),
            two.delete(address),
            two.get(f"{address}/state"),
            two.get(f"{address}/frame"),
            two.post(f"{address}/ask", json=ask),
            two.post(f"{address}/fork"),
            two.put(f"{address}/state", content=b""),
            push(two, stream, 1, 1),
        ):
            assert error_of(response, 404)["code"] == "stream_not_found"
        assert two.get("/v1/streams").json()["data"] == []
        assert one.get(address).json()["frames"] == 1
        state, other = one.get(f"{address}/state").content, opened(two)
        assert error_of(two.put(f"/v1/streams/{other}/state", content=state), 403)
        for nobody in (server.client, server.client_of("third-key"), server.client_of("x")):
            for path in ("/v1/streams", "/v1/models", address):
                assert error_of(nobody.get(path), 401)["code"] == "invalid_api_key"
        assert server.client.get("/health").status_code == 200


def test_a_deleted_stream_is_gone(server: Running) -> None:
    stream = opened(server.client)
    assert error_of(server.client.post(f"/v1/streams/{stream}/ask", json={"question": "x"}), 400)
    assert server.client.delete(f"/v1/streams/{stream}").json()["deleted"] is True
    assert error_of(server.client.delete(f"/v1/streams/{stream}"), 404)
    assert error_of(push(server.client, stream, 0), 404)


def test_too_many_streams_are_refused_until_one_is_deleted() -> None:
    with running(limits=Limits(streams_per_key=2)) as server:
        first, _ = opened(server.client), opened(server.client)
        response = server.client.post("/v1/streams", json={})
        assert error_of(response, 429) and response.headers["retry-after"]
        assert error_of(server.client.post(f"/v1/streams/{first}/fork"), 429)
        server.client.delete(f"/v1/streams/{first}")
        opened(server.client)


def _write_video(path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=2)
        stream.width = stream.height = 56
        stream.pix_fmt = "bgr0"
        for seed in range(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(seed), format="rgb24")))
        container.mux(stream.encode())


def test_the_server_follows_a_file_of_an_allowed_folder(tmp_path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    _write_video(allowed / "clip.mkv")
    (tmp_path / "secret.mkv").write_bytes((allowed / "clip.mkv").read_bytes())
    (allowed / "link.mkv").symlink_to(tmp_path / "secret.mkv")
    with running(folders=(allowed,)) as server:
        stream = opened(server.client, source=f"file://{allowed}/clip.mkv")
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["source_status"] == "ended")
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["frames"] == 9)
        wanted = quiet(list(range(9)), [seed / 2 for seed in range(9)]).ask("word", max_new_tokens=8)
        assert asked(server.client, stream) == wanted
        for source in (
            f"file://{tmp_path}/secret.mkv",
            f"file://{allowed}/../secret.mkv",
            f"file://{allowed}/link.mkv",
            f"{allowed}/none.mkv",
            str(allowed),
            "rtsp://127.0.0.1/x",
            "http://127.0.0.1/x.mp4",
            "camera:0",
            "/dev/zero",
        ):
            response = server.client.post("/v1/streams", json={"source": source})
            assert error_of(response, 400)["param"] == "source", source


def test_a_source_that_cannot_be_reached_fails_by_name_and_masks_its_password() -> None:
    with running(allow_private=True) as server:
        stream = opened(server.client, source="rtsp://me:hunter2@127.0.0.1:1/x")
        until(lambda: server.client.get(f"/v1/streams/{stream}").json()["source_status"] == "failed")
        text = server.client.get(f"/v1/streams/{stream}").text
        assert "hunter2" not in text and "127.0.0.1" in text


def test_half_a_picture_of_a_huge_size_is_refused(server: Running) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (10000, 9000)).save(file, "png")
    stream = opened(server.client)
    response = server.client.post(
        f"/v1/streams/{stream}/frames", content=file.getvalue(), headers={"content-type": "image/png"}
    )
    assert "pixels" in error_of(response, 400)["message"]
