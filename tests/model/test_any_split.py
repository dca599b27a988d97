"""Any way of cutting an input gives the same answer and leaves the same state."""

import os
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infinitevl.state import StreamState
from tests.support import prompt_inputs, relative_error, tiny_model

CASES = int(os.environ.get("INFINITEVL_SPLIT_CASES", "1000"))
TOLERANCE = 1e-5
# In float64 a wrong cut cannot hide behind rounding. In float32 one case in thousands is off by more than
# 1e-5, and so is its uncut run against float64.
EXACT = 1e-11
shared_model = cache(tiny_model)


@cache
def decoder(num_sinks, dtype):
    return tiny_model(num_sink_tokens=num_sinks).to(dtype).model.language_model


# The window is 12: pieces reach from single tokens to several windows.
PIECES = st.lists(st.one_of(st.just(1), st.integers(2, 11), st.integers(12, 40)), min_size=1, max_size=9)


# A few sinks, as many as the window, more: the ring behind them wraps first at 12 + sinks tokens.
SINKS = st.sampled_from([0, 0, 1, 5, 12, 30])


@settings(max_examples=CASES)
@given(pieces=PIECES, seed=st.integers(0, 2**31), offset=st.integers(0, 10**6), num_sinks=SINKS)
def test_any_split_gives_the_same_stream_and_state(pieces, seed, offset, num_sinks):
    assert_split_equals_whole(decoder(num_sinks, torch.float64), pieces, seed, offset, EXACT)


@settings(max_examples=min(CASES, 1000))
@given(pieces=PIECES, seed=st.integers(0, 2**31), offset=st.integers(0, 10**6), num_sinks=SINKS)
def test_any_split_gives_the_same_stream_and_state_in_float32(pieces, seed, offset, num_sinks):
    assert_split_equals_whole(decoder(num_sinks, torch.float32), pieces, seed, offset, TOLERANCE)


@pytest.mark.slow
@settings(max_examples=1000)
@given(
    num_sinks=st.integers(1, 40),
    past=st.integers(-3, 3),
    pieces=PIECES,
    seed=st.integers(0, 2**31),
)
def test_any_split_with_sinks_around_the_first_wrap_gives_the_same_stream_and_state(
    num_sinks, past, pieces, seed
):
    """The first cut lies within three tokens of the moment when the ring behind the sinks wraps."""
    pieces = [max(1, num_sinks + 12 + past), *pieces]
    assert_split_equals_whole(decoder(num_sinks, torch.float64), pieces, seed, 0, EXACT)


def assert_split_equals_whole(decoder, pieces, seed, offset, tolerance):
    """Read the same random stream at once and in pieces, single tokens the decoding way."""
    generator, total = torch.Generator().manual_seed(seed), sum(pieces)
    dtype = decoder.norm.weight.dtype
    whole, split = (StreamState.allocate(decoder.config, dtype=dtype) for _ in range(2))
    embeds = torch.randn(1, total, 32, generator=generator, dtype=dtype)
    positions = torch.randint(0, 50, (3, 1, total), generator=generator) + offset
    with torch.no_grad():
        wanted = decoder(embeds, positions, whole)
        parts = [
            decoder(e, p, split, one_token=e.shape[1] == 1)
            for e, p in zip(embeds.split(pieces, 1), positions.split(pieces, 2), strict=True)
        ]
    assert relative_error(torch.cat(parts, 1), wanted) < tolerance
    assert_same_state(split, whole, tolerance)


def test_reading_without_a_state_equals_reading_with_one():
    decoder = shared_model().model.language_model
    embeds, positions = torch.randn(2, 45, 32), torch.arange(45).expand(3, 2, -1)
    with torch.no_grad():
        alone = decoder(embeds, positions)
        remembered = decoder(embeds, positions, StreamState.allocate(decoder.config, 2))
    assert relative_error(alone, remembered) < TOLERANCE


@settings(max_examples=30)
@given(cuts=st.sets(st.integers(1, 39), max_size=6))
def test_a_prompt_with_picture_and_video_may_be_cut_between_them(cuts):
    model = shared_model()
    inputs = prompt_inputs(model.config)
    # Pictures and videos are atoms of `forward`: a cut may not fall inside one.
    cuts = sorted(cut for cut in cuts if not 5 < cut < 11 and not 20 < cut < 28)
    with torch.no_grad():
        wanted = model(**inputs)
        parts, cache = [], None
        for start, stop in zip([0, *cuts], [*cuts, 40], strict=True):
            out = model(**_part(inputs, start, stop), past_key_values=cache, use_cache=True)
            parts, cache = [*parts, out.logits], out.past_key_values
    assert relative_error(torch.cat(parts, 1), wanted.logits) < TOLERANCE
    assert_same_state(cache.state, wanted.past_key_values.state)


def _part(inputs, start, stop):
    part = {"input_ids": inputs["input_ids"][:, start:stop]}
    if start <= 5 < stop:
        part |= {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    if start <= 20 < stop:
        names = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
        part |= {name: inputs[name] for name in names}
    return part


def assert_same_state(
    given_state: StreamState, wanted_state: StreamState, tolerance: float = TOLERANCE
) -> None:
    wanted = wanted_state.tensors()
    for name, tensor in given_state.tensors().items():
        if tensor.is_floating_point():
            assert relative_error(tensor, wanted[name]) < tolerance, name
        else:
            assert torch.equal(tensor, wanted[name]), name
