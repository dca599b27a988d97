from infinitevl.evaluation.demo import Exam, KnownQuestion, examine


def known(text, at, truth):
    return KnownQuestion(text, at, truth, lambda answer: answer == truth)


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
