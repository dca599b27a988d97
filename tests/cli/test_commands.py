import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from infinitevl.cli import app
from infinitevl.cli.command import load_model


def run(*arguments, **kwargs):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **kwargs)


def objects(result):
    assert result.exit_code == 0, result.stderr or result.exception
    return [json.loads(line) for line in result.stdout.splitlines()]


def failure(result):
    """The message of a command that failed as it should: exit code 2, nothing but text."""
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.exception)
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_watching_a_clip_answers_at_the_time_and_at_the_end(tiny_folder, clip):
    asked = ["--ask", "1s: what now?", "--ask", "what was it?", "--max-new-tokens", "4"]
    *answers, last = objects(run("watch", clip, "--model", tiny_folder, "--json", *asked))
    assert [(answer["at"], answer["question"]) for answer in answers] == [
        (1.0, "what now?"),
        (1.875, "what was it?"),
    ]
    assert all(isinstance(answer["answer"], str) for answer in answers)
    assert list(last) == ["frames", "tokens", "seconds", "dropped", "state_bytes"]
    assert last["frames"] == 16 and last["dropped"] == 0 and last["tokens"] == 1 + 16 * 4


def test_video_mode_halves_the_tokens(tiny_folder, clip):
    last = objects(run("watch", clip, "--model", tiny_folder, "--json", "--mode", "video"))[-1]
    assert last["frames"] == 16 and last["tokens"] == 1 + 8 * 4


def test_fewer_frames_a_second_and_fewer_frames_in_all(tiny_folder, clip):
    by_rate = objects(run("watch", clip, "--model", tiny_folder, "--json", "--fps", "4"))[-1]
    by_count = objects(run("watch", clip, "--model", tiny_folder, "--json", "--max-frames", "3"))[-1]
    assert (by_rate["frames"], by_count["frames"]) == (8, 3)


def test_a_kept_stream_goes_on_after_its_last_frame(tiny_folder, clip, tmp_path):
    state = tmp_path / "stream.safetensors"
    first = objects(run("watch", clip, "--model", tiny_folder, "--json", "--save-state", state))[-1]
    second = objects(
        run("watch", clip, "--model", tiny_folder, "--json", "--resume-state", state, "--fps", "4")
    )[-1]
    assert second["frames"] == first["frames"] + 8
    assert second["seconds"] == pytest.approx(1.875 + 0.25 + 1.75)
    assert second["state_bytes"] == first["state_bytes"]


def test_a_kept_stream_keeps_its_mode(tiny_folder, clip, tmp_path):
    state = tmp_path / "stream.safetensors"
    objects(run("watch", clip, "--model", tiny_folder, "--json", "--mode", "video", "--save-state", state))
    resume = ["watch", clip, "--model", tiny_folder, "--json", "--resume-state", state]
    assert objects(run(*resume))[-1]["tokens"] == 1 + 16 * 4
    assert "mode video" in failure(run(*resume, "--mode", "image"))
    assert "no kept turns" in failure(run(*resume, "--keep-turns"))


def test_kept_turns_become_part_of_the_stream(tiny_folder, clip):
    asked = ["--model", tiny_folder, "--json", "--ask", "1s: what?", "--max-new-tokens", "4"]
    plain = objects(run("watch", clip, *asked))[-1]
    kept = objects(run("watch", clip, "--keep-turns", *asked))[-1]
    assert kept["tokens"] > plain["tokens"]


def test_the_report_is_one_page_with_question_and_memory(tiny_folder, clip, tmp_path):
    page = tmp_path / "out.html"
    result = run("watch", clip, "--model", tiny_folder, "--ask", "<b>what</b>?", "--report", page)
    assert result.exit_code == 0, result.stderr
    text = page.read_text()
    assert "&lt;b&gt;what&lt;/b&gt;?" in text and "<svg" in text and "<script" not in text


def test_without_json_people_read_question_answer_and_summary(tiny_folder, clip):
    result = run("watch", clip, "--model", tiny_folder, "--ask", "what?", "--max-new-tokens", "2")
    assert "[0:01.9] what?" in result.stdout
    assert "16 frames" in result.stdout and "state" in result.stdout


def test_the_demo_marks_every_answer_and_ends_with_counts_and_speed(tiny_folder, tmp_path):
    page = tmp_path / "demo.html"
    *marks, last = objects(run("demo", "--frames", "24", "--json", "--model", tiny_folder, "--report", page))
    assert all(list(mark) == ["at", "question", "answer", "truth", "right"] for mark in marks)
    assert last["frames"] == 24 and last["asked"] == len(marks) == 3 and last["frames_per_second"] > 0
    assert last["right"] == sum(mark["right"] for mark in marks) <= 1  # random weights know nothing
    assert "true answer" in page.read_text()


def test_the_demo_shows_the_truth_beside_a_wrong_answer_and_the_speed_in_its_last_line(tiny_folder):
    lines = run("demo", "--frames", "12", "--model", tiny_folder).stdout.splitlines()
    assert any("✗ true answer: " in line for line in lines)
    assert "frames/s" in lines[-1] and "the same at every frame" in lines[-1]


def test_chat_answers_one_prompt_about_a_picture_and_a_clip(tiny_folder, picture, clip):
    shown = ["--image", picture, "--video", clip, "--prompt", "what is this?", "--max-new-tokens", "3"]
    (turn,) = objects(run("chat", "--model", tiny_folder, "--json", *shown))
    assert turn["question"] == "what is this?" and isinstance(turn["answer"], str)


def test_chat_takes_many_turns_from_standard_input(tiny_folder, picture):
    lines = f"hello\n/image {picture}\nwhat is this?\n/reset\nand now?\n/quit\nnever said\n"
    turns = objects(run("chat", "--model", tiny_folder, "--json", "--max-new-tokens", "2", input=lines))
    assert [turn["question"] for turn in turns] == ["hello", "what is this?", "and now?"]


def test_models_say_what_each_is_good_for():
    entries = {entry["name"]: entry for entry in objects(run("models", "--json"))}
    assert "stream" in entries["hustvl/InfiniteVL-LongSFT"]["advice"]
    assert "fine-tune" in entries["hustvl/InfiniteVL"]["advice"]
    assert all(name in run("models").stdout for name in entries)


def test_doctor_finds_packages_kernels_video_and_room_for_streams(tiny_folder):
    findings = objects(run("doctor", "--json", "--model", tiny_folder))
    values = {(finding["section"].split()[0], finding["name"]): finding for finding in findings}
    assert values["video", "decoding"]["ok"]
    assert values["packages", "torch"]["ok"]
    assert any(section == "kernels" for section, _ in values)
    assert values["state", "published 4B"]["value"].startswith("13")
    assert "fit on cpu" in run("doctor", "--model", tiny_folder, "--device", "cpu").stdout


def test_the_version_is_the_packages():
    result = run("--version")
    assert result.exit_code == 0 and result.stdout.startswith("infinitevl ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.mp4"], "nowhere.mp4"),
        (["CLIP", "--ask", "30x: what?"], "1m30s"),
        (["CLIP", "--ask", "5s:"], "no question"),
        (["CLIP", "--fps", "0"], "positive"),
        (["CLIP", "--device", "toaster"], "there are: cpu"),
        (["CLIP", "--resume-state", "CLIP"], "state"),
        (["CLIP", "--report", "absent/out.html"], "could not write"),
        (["CLIP", "--save-state", "absent/state"], "could not write"),
        (["camera:97"], "video97"),
    ],
)
def test_bad_input_is_one_clear_message(tiny_folder, clip, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    arguments = [clip if argument == "CLIP" else argument for argument in arguments]
    assert words in failure(run("watch", *arguments, "--model", tiny_folder))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_is_answered_with_the_nearest_name(clip):
    message = failure(run("watch", clip, "--model", "hustvl/InfinitVL"))
    assert "hustvl/InfiniteVL" in message and "Did you mean" in message


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_a_model_in_lower_precision_answers(tiny_folder, quantization):
    words = ["--prompt", "hello", "--quantization", quantization, "--max-new-tokens", "3"]
    assert len(objects(run("chat", *words, "--model", tiny_folder, "--json"))) == 1


@pytest.mark.parametrize(("chosen", "threads"), [(None, 1), ("2", 2)])
def test_a_small_model_on_a_cpu_takes_one_thread_unless_another_number_was_chosen(
    tiny_folder, monkeypatch, chosen, threads
):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    torch.set_num_threads(2)
    try:
        load_model(tiny_folder, "cpu", "auto")
        assert torch.get_num_threads() == threads
        monkeypatch.setitem(load_model.__globals__, "_SMALL_MODEL", 1)  # as if the model were larger
        torch.set_num_threads(2)
        load_model(tiny_folder, "cpu", "auto")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_empty_and_a_cut_video_say_what_is_wrong(tiny_folder, clip, tmp_path):
    empty, cut = tmp_path / "empty.mp4", tmp_path / "cut.mp4"
    empty.touch()
    cut.write_bytes(Path(clip).read_bytes()[:400])
    assert "empty" in failure(run("watch", empty, "--model", tiny_folder))
    assert "cut.mp4" in failure(run("watch", cut, "--model", tiny_folder))


def test_a_source_that_breaks_half_way_still_leaves_answers_state_and_report(tiny_folder, picture, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        (pictures / f"{index}.png").write_bytes(Path(picture).read_bytes())
    (pictures / "2.png").write_bytes(b"no picture")
    state, page = tmp_path / "state", tmp_path / "page.html"
    kept = ["--save-state", state, "--report", page, "--ask", "what?", "--max-new-tokens", "1"]
    result = run("watch", pictures, "--model", tiny_folder, "--json", *kept)
    assert "2.png" in failure(result)
    answer, last = map(json.loads, result.stdout.splitlines())
    assert answer["question"] == "what?" and last["frames"] == 2
    assert state.exists() and page.exists()


def test_a_bad_picture_in_a_chat_is_named(tiny_folder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    message = failure(run("chat", "--model", tiny_folder, "--image", broken, "--prompt", "what?"))
    assert "broken.png" in message


def test_debug_shows_where_an_error_came_from():
    result = run("watch", "nowhere.mp4", "--debug")
    assert type(result.exception).__name__ == "SourceError"


SLOW_EYES = """
import time
import infinitevl.engine.session as session
observe_all = session.StreamSession.observe_all
def slowly(self, frames, at=None):
    for frame in frames:
        observe_all(self, [frame])
        print("{}", flush=True)
        time.sleep(0.3)
session.StreamSession.observe_all = slowly
from infinitevl.cli import main
main()
"""


def test_ctrl_c_ends_a_stream_with_its_answers_and_the_summary(tiny_folder, clip):
    options = ["--model", tiny_folder, "--json", "--ask", "end?", "--max-new-tokens", "1"]
    command = [sys.executable, "-c", SLOW_EYES, "watch", clip, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(2):
            assert process.stdout.readline() == "{}\n"
        process.send_signal(signal.SIGINT)
        *_, answer, last = [json.loads(line) for line in process.stdout.read().splitlines()]
    assert process.returncode == 0
    assert answer["question"] == "end?" and 2 <= last["frames"] < 16


def test_a_full_disk_leaves_no_report_and_one_message(tiny_folder, clip, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    message = failure(run("watch", clip, "--model", tiny_folder, "--report", tmp_path / "out.html"))
    assert "No space left" in message and os.listdir(tmp_path) == []
