import numpy as np
import pytest

from builtin.exam import Exam, KnownQuestion, set_exam
from builtin.world.splits import TEST, split_of_string
from builtin.world.tasks import Turn
from infinitevl.evaluation.demo import examine


def known(text, at, truth):
    return KnownQuestion(at, Turn(text, truth, "count"))


def test_each_answer_is_held_against_the_truth_of_its_own_question(session, source):
    questions = [
        known("late?", 3, "wrong"),
        known("early?", 1, "2 frames"),
        known("same time?", 3, "4 frames"),
    ]
    marks = []
    exam = Exam(source(*range(6)), questions)
    result = examine(session, exam, lambda event: None, lambda _, mark: marks.append(mark))
    assert [(mark.question, mark.right) for mark in marks] == [
        ("early?", True),
        ("late?", False),
        ("same time?", True),
    ]
    assert result.marks == marks and result.num_right == 2


def test_speed_counts_the_time_of_watching_alone(session, source):
    result = examine(session, Exam(source(*range(6)), []), lambda event: None, lambda _, mark: None)
    assert result.summary.frames == 6
    assert result.frames_per_second == 6 / result.watching_seconds
    assert result.answering_seconds == 0


@pytest.fixture(scope="module")
def exam():
    return set_exam(60)


def test_no_sign_of_the_demo_stands_in_any_training_sample(exam):
    signs = [frame.name for frame in exam.source.frames if frame.sort == "sign"]
    assert len(signs) == 6
    assert {split_of_string(text) for text in signs} == {TEST}


def test_the_demo_asks_about_the_beginning_the_end_and_between(exam):
    last = exam.source.times[-1]
    tasks = {(question.at == last, question.turn.task) for question in exam.questions}
    assert {(True, "first sign"), (True, "last sign"), (True, "now"), (False, "first sign")} <= tasks
    assert any(0 < question.at < last / 2 for question in exam.questions)


def test_the_true_answers_follow_from_the_frames(exam):
    frames, times = exam.source.frames, exam.source.times
    for question in exam.questions:
        seen = [frame for frame, time in zip(frames, times, strict=True) if time <= question.at]
        signs = [frame.name for frame in seen if frame.sort == "sign"]
        expected = {"first sign": signs[0], "last sign": signs[-1]}
        assert question.turn.answer == expected.get(question.turn.task, question.turn.answer)


def test_the_demo_is_the_same_every_time_and_draws_every_frame(exam):
    again = set_exam(60)
    assert again.questions == exam.questions
    pairs = list(zip(exam.source, again.source, strict=True))
    assert len(pairs) == 60
    assert all(np.array_equal(one.image, other.image) for one, other in pairs)
    assert pairs[0][0].image.shape == (112, 112, 3) and pairs[-1][0].time == 29.5


@pytest.mark.parametrize("num_frames", [8, 9, 300])
def test_a_demo_of_any_length_has_questions(num_frames):
    exam = set_exam(num_frames)
    assert exam.source.num_frames == len(exam.source.frames) == num_frames
    assert len(exam.questions) >= 8
