"""What the benchmarks ask of the engine is what they say they measure."""

import pytest
import torch

from infinitevl.bench.ours import Decoding, Prefill, Watching
from infinitevl.bench.sizes import model_of_size, random_frames, random_ids


@pytest.fixture(scope="module")
def tiny():
    return model_of_size("tiny", "cpu", torch.float32)


def length_of(engine, slot):
    engine.settle()
    return int(slot.state.length)


@pytest.mark.parametrize("mode", ["image", "video"])
def test_the_tokens_of_streams_are_counted_without_a_look_at_the_device(tiny, mode):
    watching = Watching(*tiny, num_streams=2, mode=mode)
    for frames in zip(
        random_frames(4, watching.frame_size), random_frames(4, watching.frame_size, 1), strict=True
    ):
        watching.watch(frames)
    assert watching.num_tokens == 1 + 4 // watching.patch_frames * 4
    assert {length_of(watching.engine, session.slot) for session in watching.sessions} == {
        watching.num_tokens
    }


def test_a_question_and_a_fork_leave_no_slot_taken(tiny):
    watching = Watching(*tiny)
    watching.watch(random_frames(1, watching.frame_size))
    first = watching.first_token(list(range(9)))
    assert first == watching.first_token(list(range(9)))
    watching.release(watching.fork())
    assert watching.engine.pool.num_free == 1 and watching.num_tokens == 5


def test_answers_grow_by_the_tokens_of_a_step_from_the_context_asked_for(tiny):
    decoding = Decoding(*tiny, num_answers=3)
    for context in (20, 50):
        decoding.read_to(context)
        before = [length_of(decoding.engine, slot) for slot in decoding.slots]
        assert before == [context] * 3
        for _ in range(4):
            decoding.step()
        grown = 4 * decoding.tokens_per_step
        assert [length_of(decoding.engine, slot) for slot in decoding.slots] == [context + grown] * 3


def test_a_prompt_is_read_from_an_empty_past_every_time(tiny):
    reading = Prefill(*tiny)
    ids = random_ids(tiny[0].config, 40, "cpu")
    logits = tiny[0](input_ids=ids).logits[0, -1]
    wanted = int(logits.argmax())
    assert [reading.prefill(ids[0].tolist()) for _ in range(2)] == [wanted, wanted]
