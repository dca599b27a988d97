"""Every example does what its first line says, with a tiny model."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
OURS = ("a_picture", "a_video", "a_camera", "save_and_fork")


def run(name, *arguments):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*arguments)


def test_a_picture_is_asked_about_twice(tiny_folder, picture, capfd):
    run("a_picture", picture, "What is this?", tiny_folder)
    assert capfd.readouterr().out.count("\n") >= 2


def test_a_video_ends_with_an_answer_and_counts(tiny_folder, clip, capsys):
    run("a_video", clip, "What is it?", tiny_folder)
    out = capsys.readouterr().out
    assert "at the end: " in out and "4 frames, 17 tokens" in out


def test_a_camera_is_asked_at_once_and_counts_what_it_drops(tiny_folder, clip, capsys):
    run("a_camera", clip, "What is it?", tiny_folder)
    assert "frames dropped: " in capsys.readouterr().out


def test_a_saved_stream_gives_the_same_answer(tiny_folder, clip, capsys):
    run("save_and_fork", clip, "What is it?", tiny_folder)
    out = capsys.readouterr().out
    assert "the fork has seen 5 frames, the stream 4" in out and "the same answer: True" in out


@pytest.mark.parametrize("name", OURS)
def test_an_example_can_be_read_at_a_glance(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40
