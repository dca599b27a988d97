"""Streams of random frames, and whether a session's state is still what it was."""

import torch

from infinitevl.engine.session import StreamSession
from tests.support import random_frame

MODES = ("image", "video")
TIMES = [0.0, 0.5, 0.75, 2.0, 2.1, 7.3, 7.3, 8.0, 9.5, 11.0]


def watched(model, processor, times, **kwargs):
    """A session that has seen a random frame at each time."""
    session = StreamSession(model, processor, **kwargs)
    for seed, at in enumerate(times):
        session.observe(random_frame(seed), at=at)
    return session


def snapshot(session):
    """All that the state holds now."""
    return {name: tensor.clone() for name, tensor in session.state.tensors().items()}


def unchanged(session, before):
    """Whether every byte of the state is as in `before`."""
    return all(torch.equal(tensor, before[name]) for name, tensor in session.state.tensors().items())
