"""Every example does what its first line says, with a tiny model."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infinitevl import ChatSession, StreamSession, load

EXAMPLES = Path(__file__).parents[2] / "examples"
OURS = ("a_picture", "a_video", "a_camera", "save_and_fork", "many_streams")


def run(name, *arguments, **named):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*arguments, **named)


def demo(*options):
    run("demo_streaming_inference", [str(option) for option in options])


def demo_names():
    return runpy.run_path(str(EXAMPLES / "demo_streaming_inference.py"))


class Device:
    """A session and its engine on a device that takes 3 ms a frame when somebody waits for it."""

    def __init__(self):
        self.engine = self.model = self
        self.device, self.now, self.asked = "a clock", 1.0, 0.0

    def observe(self, image, at):
        self.asked += 0.003

    def settle(self):
        self.now, self.asked = self.now + self.asked, 0.0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 24 pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(24):
        Image.fromarray(np.full((48, 64, 3), 10 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


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


def test_many_streams_end_with_an_answer_each_and_one_parked(tiny_folder, clip, pictures, capsys):
    run("many_streams", "What is it?", clip, str(pictures), model_name=tiny_folder)
    out = capsys.readouterr().out
    assert f"{clip}: " in out and f"{pictures}: " in out
    assert "3 of 4 slots are free" in out and "4 frames were seen by the first stream" in out


def test_the_streaming_demo_asks_at_its_frames_and_ends_with_its_speed(tiny_folder, pictures, capsys):
    chosen = ["--max_new_tokens", 2, "--questions_at", 7, 12, 99, "--question", "What is it?"]
    demo("--model_path", tiny_folder, "--video_path", pictures, "--fps", 4, *chosen)
    out = capsys.readouterr().out
    assert out.count("What is it?") == 2
    assert "frame 7, 1.5 s" in out and "frame 12, 2.8 s" in out
    assert "24 frames on cpu; the first 4 are not measured" in out
    assert re.search(r"\d+\.\d\d ms a frame: mean of 1 waited for", out)
    assert re.search(r"\d+\.\d FPS, \d+\.\d\d ms each", out)


def test_the_streaming_demo_asks_where_the_published_one_does():
    chosen = demo_names()["options"](["--video_path", "v.mp4"])
    assert chosen.questions_at == [150, 300, 450]
    assert chosen.model_path == "builtin" and chosen.fps is None


def test_the_streaming_demo_tells_that_a_clip_is_too_short(tiny_folder, clip, capsys):
    demo("--model_path", tiny_folder, "--video_path", clip, "--fps", 2)
    assert "4 frames on cpu" in (out := capsys.readouterr().out) and "too few" in out


def test_the_streaming_demo_measures_single_frames_and_frames_that_follow_each_other(monkeypatch):
    device = Device()
    watching = demo_names()["Watching"](device)
    monkeypatch.setattr("time.perf_counter", lambda: device.now)
    for index in range(42):
        device.now += 0.007  # to read the video
        watching.observe(index, index / 2)
        if index == 25:
            watching.settle()
            device.now += 100.0  # a question
    told = watching.summary()
    assert "42 frames on a clock" in told and "3.00 ms a frame: mean of 2 waited for" in told
    assert watching.num_following == 42 - 4 - 2
    assert f"{(36 * 3 + 34 * 7) / 36:.2f} ms each" in told  # the first of frames that go on was read before


def test_the_streaming_demo_ends_with_one_message_on_bad_input():
    command = [sys.executable, EXAMPLES / "demo_streaming_inference.py", "--video_path", "nowhere.mp4"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=EXAMPLES.parent)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: ") and "nowhere.mp4" in finished.stderr


@pytest.mark.parametrize("name", OURS)
def test_an_example_can_be_read_at_a_glance(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40


@pytest.fixture
def last_words(monkeypatch):
    """What an example ends with as a program: text there is one message on standard error and exit code 1."""

    def end(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return ended.value.code

    return end


@pytest.mark.parametrize("name", [*OURS, "chat_as_published"])
@pytest.mark.parametrize("arguments", [(), ("one",)])
def test_an_example_with_too_few_arguments_ends_with_its_usage_in_one_line(last_words, name, arguments):
    told = last_words(name, *arguments)
    assert len(told.splitlines()) == 1 and f"python examples/{name}.py " in told


@pytest.mark.parametrize("name", ["a_picture", "a_video", "a_camera", "save_and_fork"])
def test_an_example_with_too_many_arguments_ends_with_its_usage(last_words, name):
    assert f"python examples/{name}.py " in last_words(name, "one", "what?", "builtin", "more")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("a_picture", ("nowhere.png", "what?")),
        ("a_video", ("nowhere.mp4", "what?")),
        ("a_camera", ("camera:77", "who?")),
        ("save_and_fork", ("nowhere.mp4", "what?")),
        ("many_streams", ("what?", "nowhere.mp4")),
    ],
)
def test_an_example_ends_with_one_message_on_bad_input(last_words, name, arguments):
    assert last_words(name, *arguments).startswith("error: ")


def test_the_published_calls_end_with_one_message_on_bad_input(last_words, tiny_folder):
    told = last_words("chat_as_published", tiny_folder, "nowhere.png", "nowhere.png", "nowhere.mp4")
    assert told.startswith("error: ") and "nowhere.png" in told


def test_the_sign_of_the_examples_is_small_and_read_right():
    sign = EXAMPLES / "sign.png"
    assert sign.stat().st_size < 20_000
    model, processor = load()
    picture = {"type": "image", "image": str(sign)}
    question = {"type": "text", "text": "What does the sign say?"}
    assert ChatSession(model, processor).say([picture, question]) == "HELLO"
    stream = StreamSession(model, processor)
    for second in range(8):
        stream.observe(sign, at=second)
    assert stream.ask("What was on the first sign?") == "HELLO"
    assert stream.ask("What does the sign say?") == "HELLO"
