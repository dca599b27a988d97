"""The picture at an address is fetched again and again; what cannot be fetched is tried again, and told."""

import itertools
import time
from http.server import BaseHTTPRequestHandler

import pytest

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.sources.opening import open_source
from tests.processing.media import encoded, make_picture
from tests.processing.server import body, served

PICTURE = encoded(make_picture(64, 48, 1), "JPEG")


def taken(source, count):
    frames = []
    with source:
        for frame in source:
            frames.append(frame)
            if len(frames) == count:
                break
    return frames


def test_a_picture_is_fetched_again_and_again() -> None:
    with served({"/now.jpg?x=1": body(PICTURE)}) as (address, asked):
        frames = taken(open_source(f"{address}/now.jpg?x=1", every=0.02, allow_private=True), 3)
    times = [frame.time for frame in frames]
    assert len(asked) >= 3 and frames[0].image.shape == (48, 64, 3)
    assert times[0] == 0 and all(later - sooner >= 0.01 for sooner, later in itertools.pairwise(times))


def test_an_address_without_an_ending_is_a_picture_where_every_says_so() -> None:
    with served({"/snapshot": body(PICTURE)}) as (address, _):
        assert len(taken(open_source(f"{address}/snapshot", every=0.01, allow_private=True), 2)) == 2


def test_a_slow_reader_gets_the_newest_picture_and_the_others_count_as_dropped() -> None:
    with (
        served({"/now.png": body(PICTURE)}) as (address, asked),
        open_source(f"{address}/now.png", every=0.001, allow_private=True) as source,
    ):
        frames = iter(source)
        next(frames)
        while len(asked) < 5:
            time.sleep(0.005)
        newest = next(frames)
        assert source.live and newest.dropped >= 2 and source.dropped >= newest.dropped


def test_a_picture_that_fails_is_tried_again_and_told_without_its_password(caplog) -> None:
    answers = [body(PICTURE), body(b"", 503), body(b"no picture"), body(PICTURE)]

    def next_answer(handler: BaseHTTPRequestHandler) -> None:
        (answers.pop(0) if len(answers) > 1 else answers[0])(handler)

    with served({"/now.jpg": next_answer}) as (address, _):
        named = address.replace("://", "://me:hush@") + "/now.jpg"
        source = open_source(named, every=0.001, allow_private=True)
        source._wait = lambda seconds: None
        frames = taken(source, 6)
    assert len(frames) == 6
    assert "503" in caplog.text and "opened again in 0.5 s" in caplog.text
    assert "hush" not in caplog.text and "://***@127.0.0.1" in caplog.text


def test_a_picture_that_never_came_or_may_not_be_fetched_is_an_error_at_once() -> None:
    with (
        open_source("http://127.0.0.1:9/now.jpg") as source,
        pytest.raises(InputError, match="--allow-private"),
    ):
        next(iter(source))
    with (
        open_source("http://me:hush@127.0.0.1:9/now.jpg", allow_private=True) as source,
        pytest.raises(InputError, match="could not be fetched") as raised,
    ):
        next(iter(source))
    assert "hush" not in str(raised.value) and not isinstance(raised.value, SourceError)


def test_closing_wakes_a_source_that_waits_for_the_next_picture() -> None:
    with served({"/now.jpg": body(PICTURE)}) as (address, _):
        source = open_source(f"{address}/now.jpg", every=600, allow_private=True)
        next(iter(source))
        source.close()
    assert not source._thread.is_alive()


@pytest.mark.parametrize(
    ("source", "every", "told"),
    [
        ("a.mp4", 1, "address of a picture"),
        ("rtsp://a/b", 1, "address of a picture"),
        ([], 1, "address of a picture"),
        ("http://a/b", 0, "every is 0"),
    ],
)
def test_an_interval_that_means_nothing_is_refused(source, every, told) -> None:
    with pytest.raises(InputError, match=told):
        open_source(source, every=every)
