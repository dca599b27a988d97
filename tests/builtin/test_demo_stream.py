"""The stream of the demo: what is in the package is what its maker draws, and no training data."""

import json
from pathlib import Path

import numpy as np
import pytest

from builtin.demo_stream import NUM_KEPT, compose, draw, write_frames
from builtin.world.packs import load_world
from builtin.world.splits import TEST, split_of_string
from infinitevl.evaluation.demo import StoredFrames, open_demo, stored_folder


@pytest.fixture(scope="module")
def made():
    world, textures = load_world()
    frames, facts = compose(world)
    return world, textures, frames, facts


def test_the_package_holds_the_questions_that_the_maker_composes(made) -> None:
    assert json.loads((stored_folder() / "questions.json").read_text()) == made[-1]


def test_the_package_holds_the_frames_that_the_maker_draws(made) -> None:
    world, textures, frames, _ = made
    drawn = draw(world, textures, frames[:48])
    for stored, picture in zip(open_demo(48).source, drawn, strict=True):
        assert np.array_equal(stored.image, np.asarray(picture))


def test_frames_are_written_without_loss(made, tmp_path: Path) -> None:
    world, textures, frames, _ = made
    drawn = draw(world, textures, frames[:16])
    write_frames(drawn, tmp_path / "frames.webp")
    stored = list(StoredFrames(tmp_path / "frames.webp", [index / 2 for index in range(16)]))
    assert all(np.array_equal(one.image, np.asarray(two)) for one, two in zip(stored, drawn, strict=True))


def test_no_sign_of_the_demo_stands_in_any_training_sample(made) -> None:
    signs = [frame.name for frame in made[2] if frame.sort == "sign"]
    assert len(signs) == 6
    assert {split_of_string(text) for text in signs} == {TEST}


def test_the_true_answers_follow_from_the_frames(made) -> None:
    _, _, frames, facts = made
    checked = 0
    for question in facts["questions"]:
        signs = [frame.name for frame in frames[: question["after"]] if frame.sort == "sign"]
        for word, sign in (("first", signs[0]), ("last", signs[-1])):
            if f"{word} sign" in question["question"]:
                assert question["answer"] == sign, question
                checked += 1
    assert checked >= 3 and facts["questions"][-1]["after"] == NUM_KEPT
