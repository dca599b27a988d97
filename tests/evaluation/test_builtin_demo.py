"""The demo with the model that comes with the package: its answers are right, and its own."""

import pytest
import torch

import infinitevl
from infinitevl.evaluation.demo import open_demo, watch_demo


@pytest.fixture(scope="module")
def builtin():
    return infinitevl.load(device="cpu")


def marks(model, processor):
    session = infinitevl.StreamSession(model, processor)
    return watch_demo(
        session, open_demo(32), lambda event: None, lambda event, mark: None, max_new_tokens=12
    ).marks


def shuffle_(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            order = torch.randperm(weight.numel(), generator=generator)
            weight.copy_(weight.flatten()[order].view_as(weight))


def test_most_answers_of_the_demo_are_right_and_none_once_the_weights_are_shuffled(builtin):
    model, processor = builtin
    answers = marks(model, processor)
    assert sum(mark.right for mark in answers) > len(answers) / 2, answers
    shuffle_(model)
    assert sum(mark.right for mark in marks(model, processor)) <= 1
