"""Log-probabilities of captured steps: those of steps that run anew, and no token is another one for them."""

import pytest

from infinitevl import Engine, Sampling, StreamSession
from tests.support import random_frame, tiny_model, tiny_processor

pytestmark = pytest.mark.gpu
LENGTH = 40  # more than the device keeps


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_replayed_log_probabilities_equal_eager_ones_and_change_no_token(temperature):
    model = tiny_model().cuda()
    model.config.eos_token_id = model.generation_config.eos_token_id = 499
    found = []
    for eager in (False, True):
        session = StreamSession.on(Engine(model, tiny_processor(), num_slots=2, enforce_eager=eager))
        session.observe(random_frame(0))
        for logprobs in (None, 5):
            answer = session.begin("what?", Sampling(LENGTH, temperature, seed=3, logprobs=logprobs))
            session.finish(answer)
            found.append((answer.tokens, answer.logprobs))
    (plain, none), replayed, *eager = found
    assert replayed == eager[1] and (plain, none) == eager[0]
    assert plain == replayed[0] and none == [] and len(replayed[1]) == LENGTH
