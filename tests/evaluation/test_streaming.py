import os
import signal
import threading
import time

import pytest

from infinitevl.errors import InputError, SourceError
from infinitevl.evaluation.questions import parse_question
from infinitevl.evaluation.streaming import (
    TOGETHER,
    Answered,
    Asked,
    Piece,
    Refused,
    Seen,
    WatchSettings,
    watch,
)
from infinitevl.processing.sources.frames import Frame

EVERY_FRAME = WatchSettings(report_every=0)


def run(session, source, *lines, **kwargs):
    events = []
    settings = kwargs.pop("settings", EVERY_FRAME)
    outcome = watch(session, source, map(parse_question, lines), events.append, settings=settings, **kwargs)
    return outcome.summary, events


def answers(events):
    return [(event.at, event.question, event.answer) for event in events if isinstance(event, Answered)]


def test_a_question_sees_every_frame_up_to_its_time_and_none_after_it(session, source):
    _, events = run(session, source(0, 1, 2, 3, 4), "2s: exact?", "2.5s: between?", "end?")
    assert answers(events) == [
        (2, "exact?", "3 frames"),
        (2, "between?", "3 frames"),
        (4, "end?", "5 frames"),
    ]


def test_a_question_beyond_the_end_is_asked_at_the_end(session, source):
    _, events = run(session, source(0, 1), "end?", "90s: late?")
    assert answers(events) == [(1, "late?", "2 frames"), (1, "end?", "2 frames")]


def test_a_repeated_question_is_asked_at_each_multiple_of_its_period(session, source):
    _, events = run(session, source(0, 1, 2, 3, 4, 5, 6), "every 2s: now?")
    assert answers(events) == [(2, "now?", "3 frames"), (4, "now?", "5 frames"), (6, "now?", "7 frames")]


def test_a_repeated_question_is_asked_once_where_no_frame_came_and_once_of_a_short_stream(session, source):
    _, events = run(session, source(0, 1, 9, 10), "every 2s: now?", "30s: late?")
    assert answers(events) == [(1, "now?", "2 frames"), (10, "now?", "4 frames"), (10, "late?", "4 frames")]
    _, events = run(type(session)(), source(0, 1), "every 1m: now?")
    assert answers(events) == [(1, "now?", "2 frames")]


def test_a_question_to_a_live_source_is_answered_by_what_was_seen_at_its_time(session, source):
    """Frames between are dropped there: the newest one before the question may be old."""
    live = source(0, 5, 6)
    live.live = True
    _, events = run(session, live, "2s: now?", "5s: then?", "every 3s: again?")
    at_five = [(5, name, "2 frames") for name in ("now?", "again?", "then?")]
    assert answers(events) == [*at_five, (6, "again?", "3 frames")]


def test_an_answer_is_told_first_as_question_then_in_pieces_then_whole(session, source):
    _, events = run(session, source(0), "what?")
    kinds = [type(event) for event in events]
    assert kinds[-4:] == [Asked, Piece, Piece, Answered]


def test_the_summary_counts_frames_tokens_seconds_and_bytes(session, source):
    summary, _ = run(session, source(0, 0.5, 1.0))
    expected = {"frames": 3, "tokens": 48, "seconds": 1.0, "dropped": 0, "state_bytes": 1000}
    assert summary.line() == expected


def test_watching_stops_after_max_frames(session, source):
    summary, _ = run(session, source(0, 1, 2, 3), settings=WatchSettings(max_frames=2))
    assert summary.frames == 2


def test_a_resumed_stream_goes_on_after_its_last_frame(session, source):
    session.observe(Frame(None, 10.0))
    run(session, source(0, 1, 2), settings=WatchSettings(starts_at=10.5))
    assert session.times == [10.0, 10.5, 11.5, 12.5]


def test_frames_that_a_live_source_left_out_are_counted_on_top_of_earlier_ones(session, source):
    session.dropped = 4
    summary, _ = run(session, source(0, 1, dropped=3))
    assert summary.dropped == 4 + 2 * 3


def test_a_typed_question_is_answered_at_once_and_a_bad_one_does_not_end_the_stream(session, source):
    lines = [["now?"], ["refuse this"], []]
    _, events = run(session, source(0, 1, 2), typed=lambda: lines.pop(0))
    assert answers(events) == [(0, "now?", "1 frames")]
    assert [event.question for event in events if isinstance(event, Refused)] == ["refuse this"]
    assert sum(isinstance(event, Seen) for event in events) >= 3


def test_a_source_without_frames_is_an_error_that_says_so(session, source):
    with pytest.raises(InputError, match="no frame"):
        run(session, source(), "what?")


@pytest.mark.parametrize("kind", [SourceError, InputError])
def test_a_source_that_breaks_is_asked_about_what_was_seen_and_the_error_is_kept(session, source, kind):
    events = []
    error = kind("broke off")
    outcome = watch(session, source(0, 1, error), [parse_question("end?")], events.append)
    assert outcome.broken is error and outcome.summary.frames == 2
    assert answers(events) == [(1, "end?", "2 frames")]


def test_a_source_that_breaks_before_its_first_frame_says_only_that(session, source):
    with pytest.raises(SourceError, match="cannot open"):
        run(session, source(SourceError("cannot open")), "what?")


def test_ctrl_c_between_two_frames_ends_the_stream_and_the_last_question_is_answered(session, source):
    class Endless(source):
        def __iter__(self):
            for frame in source(*range(10**6)):
                if frame.time == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                yield frame

    handler = signal.getsignal(signal.SIGINT)
    summary, events = run(session, Endless(), "end?")
    assert summary.frames == 3
    assert answers(events) == [(2, "end?", "3 frames")]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(("live", "taken_in"), [(True, 1), (False, TOGETHER)])
def test_ctrl_c_while_frames_are_taken_in_lets_them_be_taken_in_whole(session, source, live, taken_in):
    observe = session.observe

    def observe_and_press(frame):
        if not session.times:
            os.kill(os.getpid(), signal.SIGINT)
        observe(frame)

    session.observe = observe_and_press
    frames = source(*range(20))
    frames.live = live
    summary, _ = run(session, frames)
    assert summary.frames == taken_in


def test_frames_of_a_file_are_observed_together_but_for_a_question_between_them(session, source):
    sizes, observe_all = [], session.observe_all
    session.observe_all = lambda frames: (sizes.append(len(frames)), observe_all(frames))
    _, events = run(session, source(*range(21)), "9s: now?")
    assert sizes == [TOGETHER, 2, TOGETHER, 3]
    assert answers(events) == [(9, "now?", "10 frames")]


def test_frames_before_one_that_cannot_be_observed_are(session, source):
    summary, events = run(session, source(0, 1, 2, 1, 3), "end?")
    assert summary.frames == 3 and answers(events) == [(2, "end?", "3 frames")]


def test_watching_works_in_a_thread_where_signals_are_not_delivered(session, source):
    done = []
    thread = threading.Thread(target=lambda: done.append(run(session, source(0, 1))[0].frames))
    thread.start()
    thread.join()
    assert done == [2]


def test_frames_are_reported_no_more_often_than_asked_for(session, source):
    start = time.monotonic()
    _, events = run(session, source(*range(500)), settings=WatchSettings(report_every=60))
    assert sum(isinstance(event, Seen) for event in events) <= 3
    assert time.monotonic() - start < 30
