import numpy as np
import pytest

from infinitevl.errors import InputError
from infinitevl.evaluation.demo import Demo, KnownQuestion, open_demo, stored_folder, watch_demo


def known(text, at, truth):
    return KnownQuestion(at, text, truth)


def test_each_answer_is_held_against_the_truth_of_its_own_question(session, source):
    questions = [
        known("late?", 3, "wrong"),
        known("early?", 1, "2 frames"),
        known("same time?", 3, "4 frames"),
    ]
    marks = []
    demo = Demo(source(*range(6)), questions)
    result = watch_demo(session, demo, lambda event: None, lambda _, mark: marks.append(mark))
    assert [(mark.question, mark.right) for mark in marks] == [
        ("early?", True),
        ("late?", False),
        ("same time?", True),
    ]
    assert result.marks == marks and result.num_right == 2


def test_speed_counts_the_time_of_watching_alone(session, source):
    result = watch_demo(session, Demo(source(*range(6)), []), lambda event: None, lambda _, mark: None)
    assert result.summary.frames == 6
    assert result.frames_per_second == 6 / result.watching_seconds
    assert result.answering_seconds == 0


def test_the_demo_asks_at_its_beginning_at_its_end_and_between():
    demo = open_demo()
    moments = {question.at for question in demo.questions}
    last = (demo.source.num_frames - 1) / 2
    assert demo.source.num_frames == 240 and len(demo.questions) == 15
    assert last in moments and any(0 < moment < last / 10 for moment in moments) and len(moments) == 5


def test_a_shorter_demo_is_the_beginning_of_the_whole_one():
    whole, part = open_demo(), open_demo(30)
    for one, other in zip(part.source, whole.source, strict=False):
        assert one.time == other.time and np.array_equal(one.image, other.image)
    assert one.time == 14.5 and one.image.shape == (112, 112, 3) and one.image.dtype == np.uint8
    assert part.questions == [question for question in whole.questions if question.at <= 14.5]
    assert len(open_demo(12).questions) == 3


@pytest.mark.parametrize("num_frames", [0, 241])
def test_a_demo_longer_than_what_is_stored_is_refused(num_frames):
    with pytest.raises(InputError, match="240 frames"):
        open_demo(num_frames)


def test_small_letters_spaces_and_a_final_stop_do_not_make_an_answer_wrong():
    question = KnownQuestion(0, "what?", "Red star", ("red",))
    assert question.accepts(" red  STAR. ") and question.accepts("Red.") and not question.accepts("star")


def test_the_stored_demo_takes_less_than_three_megabytes():
    assert sum(path.stat().st_size for path in stored_folder().iterdir()) < 3_000_000
