"""The ring against a full cache with a window mask, before, at and far after the wrap."""

import pytest
import torch

from infinitevl.ops import reference
from infinitevl.ops.attention import ring as attention
from tests.support import relative_error

WINDOW = 8


def empty_ring(slots=WINDOW, poison=float("nan")):
    """A ring whose empty slots would be noticed in any output."""
    return tuple(torch.full((2, 2, slots, 4), poison) for _ in range(2))


def tokens(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, length, 4, 4, generator=generator),
        torch.randn(2, length, 2, 4, generator=generator),
        torch.randn(2, length, 2, 4, generator=generator),
    )


def read(q, k, v, pieces, window, ring, num_sinks=0):
    """Read in pieces through the ring, one token by the step functions."""
    length, outputs = torch.zeros(2, dtype=torch.int64), []
    for q1, k1, v1 in zip(*(x.split(pieces, 1) for x in (q, k, v)), strict=True):
        if q1.shape[1] == 1:
            attention.store_step_(ring, k1, v1, length, num_sinks)
            outputs.append(attention.attend_step(q1, ring, length + 1))
        else:
            outputs.append(attention.attend_chunk(q1, k1, v1, ring, length, window, num_sinks))
            attention.store_chunk_(ring, k1, v1, length, None, num_sinks)
        length = length + q1.shape[1]
    return torch.cat(outputs, 1)


@pytest.mark.parametrize(
    "pieces",
    [[1] * 20, [7, 1], [8, 1, 1], [9, 1], [3, 5, 2], [30, 1, 1], [1, 25, 1, 40, 3], [8, 8, 8], [2] * 30],
)
def test_the_ring_equals_a_full_cache_with_a_window_mask(pieces):
    q, k, v = tokens(sum(pieces))
    # Zero, not NaN: masked slots are multiplied by weights of exactly zero.
    given = read(q, k, v, pieces, WINDOW, empty_ring(poison=1e6))
    assert relative_error(given, reference.window_attention(q, k, v, WINDOW)) < 1e-6


def test_full_attention_keeps_everything():
    q, k, v = tokens(30)
    given = read(q, k, v, [10, 1, 1, 18], None, empty_ring(40, poison=1e6))
    assert relative_error(given, reference.window_attention(q, k, v, None)) < 1e-6


def test_a_prompt_longer_than_a_block_of_queries_equals_the_definition(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 16)
    q, k, v = tokens(90)
    for window in (WINDOW, 50, None):
        slots = window or 90
        given = read(q, k, v, [40, 50], window, empty_ring(slots, poison=1e6))
        assert relative_error(given, reference.window_attention(q, k, v, window)) < 1e-6


def test_a_ring_of_another_dtype_keeps_it_and_is_read():
    """As under autocast: new tokens are bfloat16, the ring float32; and the other way round."""
    q, k, v = tokens(30)
    wanted = reference.window_attention(q, k, v, WINDOW)
    for new, stored in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        ring = tuple(x.to(stored) for x in empty_ring(poison=1e6))
        given = read(*(x.to(new) for x in (q, k, v)), [9, 1, 19, 1], WINDOW, ring)
        assert given.dtype == new and {x.dtype for x in ring} == {stored}
        assert relative_error(given, wanted) < 0.02


# The window, the sinks and both together end at a cut, a token before it and a token after it.
SINK_PIECES = [[1] * 20, [3, 1, 1, 30], [4, 7, 1, 1, 40, 1], [11, 1, 1], [12, 1, 25], [13, 1, 5, 1], [60, 1]]


@pytest.mark.parametrize("pieces", SINK_PIECES)
@pytest.mark.parametrize("num_sinks", [1, 4, 13])
def test_sinks_and_ring_equal_a_full_cache_with_that_mask(pieces, num_sinks):
    q, k, v = tokens(sum(pieces))
    given = read(q, k, v, pieces, WINDOW, empty_ring(num_sinks + WINDOW, poison=1e6), num_sinks)
    assert relative_error(given, reference.window_attention(q, k, v, WINDOW, 0, num_sinks)) < 1e-6


@pytest.mark.parametrize("num_sinks", [0, 1, 4, 256])
@pytest.mark.parametrize("window", [1, 63, 64, 65])
def test_sinks_with_windows_around_a_tile_far_after_the_wrap(window, num_sinks):
    pieces = [64, 1, 200, 1, 1, 130, 500, 1]
    q, k, v = tokens(sum(pieces))
    given = read(q, k, v, pieces, window, empty_ring(num_sinks + window, poison=1e6), num_sinks)
    assert relative_error(given, reference.window_attention(q, k, v, window, 0, num_sinks)) < 1e-5


@pytest.mark.parametrize("num_sinks", [1, 4, 20])
def test_sinks_in_a_prompt_longer_than_a_block_of_queries_equal_the_definition(monkeypatch, num_sinks):
    monkeypatch.setattr(attention, "BLOCK", 16)
    q, k, v = tokens(90)
    for pieces in ([90], [2, 88], [40, 50]):
        ring = empty_ring(num_sinks + WINDOW, poison=1e6)
        given = read(q, k, v, pieces, WINDOW, ring, num_sinks)
        assert relative_error(given, reference.window_attention(q, k, v, WINDOW, 0, num_sinks)) < 1e-6
    whole = attention.attend_chunk(q, k, v, None, None, WINDOW, num_sinks)
    assert relative_error(whole, reference.window_attention(q, k, v, WINDOW, 0, num_sinks)) < 1e-6


def test_a_stream_shorter_than_sinks_and_window_is_full_attention():
    q, k, v = tokens(12)
    given = read(q, k, v, [5, 1, 6], 8, empty_ring(12, poison=1e6), 4)
    assert relative_error(given, reference.window_attention(q, k, v, None)) < 1e-6


@pytest.mark.parametrize("num_sinks", [0, 3])
@pytest.mark.parametrize("num_new", [1, 5, 8, 21])
def test_rows_of_different_length_share_a_ring(num_new, num_sinks):
    """Rows with other fill levels and other numbers of new tokens end as they would alone."""
    lengths, counts = torch.tensor([2, 20]), torch.tensor([num_new, max(1, num_new - 2)])
    _, k, v = tokens(num_new, seed=1)
    together = empty_ring(poison=0.5)
    attention.store_chunk_(together, k, v, lengths, counts, num_sinks)
    for row in range(2):
        alone = empty_ring(poison=0.5)
        n = counts[row]
        attention.store_chunk_(alone, k[:, :n], v[:, :n], lengths[row].expand(2), None, num_sinks)
        for given, wanted in zip(together, alone, strict=True):
            assert torch.equal(given[row], wanted[row])


def test_each_slot_names_the_newest_token_that_belongs_there():
    held = attention.ring_tokens(torch.tensor([0, 3, 8, 19]), 8)
    assert held.tolist() == [
        [-8, -7, -6, -5, -4, -3, -2, -1],
        [0, 1, 2, -5, -4, -3, -2, -1],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [16, 17, 18, 11, 12, 13, 14, 15],
    ]


def test_the_first_slots_hold_the_sinks_for_ever():
    lengths = torch.tensor([0, 2, 3, 5, 8, 9, 19])
    assert attention.ring_tokens(lengths, 8, 3).tolist() == [
        [-1, -1, -1, -1, -1, -1, -1, -1],
        [0, 1, -1, -1, -1, -1, -1, -1],
        [0, 1, 2, -1, -1, -1, -1, -1],
        [0, 1, 2, 3, 4, -1, -1, -1],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 8, 4, 5, 6, 7],
        [0, 1, 2, 18, 14, 15, 16, 17],
    ]
    token = torch.arange(20)
    for number, slot in zip(token.tolist(), attention.slot_of(token, 8, 3).tolist(), strict=True):
        assert attention.ring_tokens(torch.tensor([number + 1]), 8, 3)[0, slot] == number
