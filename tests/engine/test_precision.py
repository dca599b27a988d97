"""bfloat16 over a long stream, and positions far into one."""

import pytest
import torch

from infinitevl.engine.session import StreamSession
from infinitevl.processing.prompt.encoding import turn_ids
from infinitevl.state import StreamState
from tests.support import random_frame, relative_error, tiny_model, tiny_processor


def question_logits(model, session):
    """Logits after a question on a fork."""
    ids = torch.tensor([turn_ids(session.processor.tokenizer, "the sign")])
    with torch.no_grad():
        return model(input_ids=ids, past_key_values=session.state.fork(), logits_to_keep=1).logits


def test_the_error_of_bfloat16_does_not_grow_with_the_stream():
    models = [tiny_model(), tiny_model().to(torch.bfloat16)]
    sessions = [StreamSession(model, tiny_processor()) for model in models]
    errors = {}
    for index in range(400):
        for session in sessions:
            session.observe(random_frame(index % 32), at=index / 2)
        if index + 1 in (36, 38, 40, 396, 398, 400):
            exact, rounded = (question_logits(m, s) for m, s in zip(models, sessions, strict=True))
            errors[index + 1] = relative_error(rounded, exact)
    early, late = (sum(errors[n] for n in part) for part in ((36, 38, 40), (396, 398, 400)))
    assert late <= 1.5 * early


@pytest.mark.parametrize("offset", [10**4, 10**9])
def test_the_same_content_far_away_gives_the_same_stream(offset):
    decoder = tiny_model().model.language_model
    embeds = torch.randn(1, 60, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.randint(0, 4000, (3, 1, 60), generator=torch.Generator().manual_seed(1))
    states = [StreamState.allocate(decoder.config) for _ in range(2)]
    with torch.no_grad():
        near = decoder(embeds, positions, states[0])
        far = decoder(embeds, positions + offset, states[1])
    assert relative_error(far, near) < 1e-4
