"""What was recorded before the package was restructured is still so."""

import json

import pytest
import torch

from tests.recorded import values

RECORDED = json.loads(values.RECORDED.read_text())


def _new(tmp_path):
    (tmp_path / "world").mkdir(parents=True)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("scenes", [False, True], ids=["rows", "scenes"])
def test_twenty_steps_of_every_stage_have_the_recorded_losses(tmp_path, scenes):
    found = values.stage_losses(_new(tmp_path), scenes)
    wanted = RECORDED["losses_on_scenes" if scenes else "losses_on_rows"]
    assert set(found) == set(wanted)
    for stage, losses in found.items():
        assert losses == pytest.approx(wanted[stage], rel=1e-5), stage


def test_logits_of_the_reference_vectors_are_the_recorded_ones():
    found = values.logits_of_the_vectors()
    for name, numbers in found.items():
        assert numbers == pytest.approx(RECORDED["logits"][name], rel=1e-4, abs=1e-4), name


def test_a_streams_state_is_the_recorded_one():
    for found, wanted in zip(values.state_after_a_stream(), RECORDED["state"], strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_the_built_in_model_answers_as_recorded():
    assert values.answers("cpu") == RECORDED["answers"]


@pytest.mark.gpu
def test_the_built_in_model_answers_as_recorded_on_a_gpu():
    assert torch.cuda.is_available() and values.answers("cuda") == RECORDED["answers_cuda"]
