"""The model and processor of a session's tests."""

import pytest

from tests.support import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model():
    """Random weights would end an answer at once or never: every answer runs to its limit."""
    model = tiny_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = 499
    return model


@pytest.fixture
def processor():
    return tiny_processor()
