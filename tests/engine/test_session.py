"""A stream: frame by frame equals at once, questions leave it untouched, and it never grows."""

import statistics
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from infinitevl.engine.chat import ChatSession
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.session import StreamSession, Turn
from infinitevl.errors import InputError, StateError
from infinitevl.model.positions import text_positions
from infinitevl.processing.prompt.encoding import encode_text, turn_ids
from tests.engine.streams import MODES, TIMES, snapshot, unchanged, watched
from tests.support import random_frame, relative_error, tiny_model

PATCH = {"image": 1, "video": 2}


def at_once(model, processor, times, question, mode):
    """The definition: ids, embeddings and positions of the whole stream and its question, in one read."""
    config = model.config
    ids, positions, pixels = [config.vision_start_token_id], [[0] * 3], []
    start, step = 1, PATCH[mode]
    for first in range(0, len(times), step):
        pair = [random_frame(min(first + i, len(times) - 1)) for i in range(step)]
        pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in pair]
        if step == 1:
            pixels.append(processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"])
        else:
            clip = torch.stack(pair).float()
            pixels.append(processor.video(clip, fps=2.0)["pixel_values_videos"])
        ids += [config.image_token_id if step == 1 else config.video_token_id] * 4
        when = start + int((times[first] - times[0]) * 2 + 1e-6)
        positions += [[when, start + row, start + column] for row in range(2) for column in range(2)]
    after = torch.tensor([max(max(p) for p in positions) + 1])
    tail = [config.vision_end_token_id, *turn_ids(processor.tokenizer, question)]
    all_ids = torch.tensor([ids + tail])
    embeds = model.model.embed(all_ids)
    features = model.model.visual(torch.cat(pixels), [(1, 4, 4)] * len(pixels))
    embeds[0, 1 : len(ids)] = features
    position_ids = torch.cat([torch.tensor(positions).T[:, None], text_positions(after, len(tail))], dim=2)
    return embeds, position_ids


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_frames", [1, 2, 5, 10])
def test_watching_frame_by_frame_equals_watching_at_once(model, processor, mode, num_frames):
    times = [10.1 + t for t in TIMES[:num_frames]]
    session = watched(model, processor, times, mode=mode)
    answer = session.ask("what was seen", max_new_tokens=1)
    with torch.no_grad():
        embeds, positions = at_once(model, processor, times, "what was seen", mode)
        out = model(inputs_embeds=embeds, position_ids=positions)
        twin = session.fork()
        twin.engine.read_turn(twin.slot, [])
        fork = twin.state
    assert answer == processor.tokenizer.decode(out.logits[0, -1].argmax(), skip_special_tokens=True)
    # The states agree too, not only the first token.
    tail = len(turn_ids(processor.tokenizer, "what was seen"))
    with torch.no_grad():
        whole = model(inputs_embeds=embeds[:, :-tail], position_ids=positions[..., :-tail], use_cache=True)
    wanted = whole.past_key_values.state.tensors()
    for name, tensor in fork.tensors().items():
        if not name.startswith("span"):
            assert relative_error(tensor, wanted[name]) < 1e-5, name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_a_question_leaves_every_byte_of_the_stream_as_it_was(model, processor, mode, num_frames):
    session = watched(model, processor, TIMES[:num_frames], mode=mode)
    before = snapshot(session)
    first = session.ask("what is this?", max_new_tokens=8)
    assert unchanged(session, before)
    assert session.ask("what is this?", max_new_tokens=8) == first


def test_a_stream_with_questions_equals_one_without(model, processor):
    silent = watched(model, processor, TIMES)
    asked = StreamSession(model, processor)
    for seed, at in enumerate(TIMES):
        asked.observe(random_frame(seed), at=at)
        asked.ask("anything new?", max_new_tokens=3)
    assert unchanged(asked, snapshot(silent))


@pytest.mark.parametrize("mode", MODES)
def test_a_fork_goes_its_own_way(model, processor, mode):
    session = watched(model, processor, TIMES[:5], mode=mode)
    before, twin = snapshot(session), session.fork()
    assert unchanged(twin, before)
    twin.observe(random_frame(99), at=50.0)
    assert unchanged(session, before) and not unchanged(twin, before)
    assert twin.mode == mode and twin.frame_size == session.frame_size


def test_dropped_frames_are_forked_and_saved_with_the_stream(model, processor, tmp_path):
    session = watched(model, processor, TIMES[:2])
    session.dropped = 3
    twin = session.fork()
    twin.dropped += 2
    twin.save(tmp_path / "s")
    loaded = StreamSession.load(tmp_path / "s", model, processor)
    loaded.dropped += 1
    assert [each.stats().dropped for each in (session, twin, loaded)] == [3, 5, 6]


@pytest.mark.parametrize("mode", MODES)
def test_a_saved_stream_continues_bit_for_bit(model, processor, tmp_path, mode):
    session = watched(model, processor, TIMES[:5], mode=mode, keep_turns=True, system="Be brief.")
    session.save(tmp_path / "s")
    loaded = StreamSession.load(tmp_path / "s", model, processor)
    for each in (session, loaded):
        each.observe(random_frame(7), at=20.0)
    assert session.ask("and now?", max_new_tokens=6) == loaded.ask("and now?", max_new_tokens=6)
    assert unchanged(loaded, snapshot(session)) and loaded.stats() == session.stats()


def test_a_saved_stream_continues_in_a_new_process(model, processor, tmp_path):
    session = watched(model, processor, TIMES)
    session.save(tmp_path / "s")
    code = f"""
import torch
torch.set_num_threads(1)
from infinitevl.engine.session import StreamSession
from tests.support import tiny_model, tiny_processor
model = tiny_model()
model.config.eos_token_id = model.generation_config.eos_token_id = 499
session = StreamSession.load(r"{tmp_path / "s"}", model, tiny_processor())
print(ascii(session.ask("what was seen", max_new_tokens=10)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == ascii(session.ask("what was seen", max_new_tokens=10)), done.stderr


def test_a_stream_of_another_model_is_refused(model, processor, tmp_path):
    watched(model, processor, TIMES[:2]).save(tmp_path / "s")
    with pytest.raises(StateError, match="another model"):
        StreamSession.load(tmp_path / "s", tiny_model(seed=1), processor)


def test_kept_turns_become_part_of_the_stream(model, processor):
    session = watched(model, processor, TIMES[:4], keep_turns=True)
    frames_end = int(session.state.next_position)
    answer = session.ask("what is it?", max_new_tokens=5)
    question = [model.config.vision_end_token_id, *turn_ids(processor.tokenizer, "what is it?")]
    turn = len(question) + 5 + 1 + len(encode_text(processor.tokenizer, "\n"))
    assert int(session.state.length) == 1 + 4 * 4 + turn
    assert int(session.state.next_position) == frames_end + turn
    # The next frame opens a new span: vision-start, then p.
    session.observe(random_frame(5), at=100.0)
    assert int(session.state.span.start) == frames_end + turn + 1
    session.observe(random_frame(6), at=101.0)
    # A frame one second into the new span stands two positions after its start.
    assert int(session.state.next_position) == frames_end + turn + 1 + 2 + 1
    assert answer and int(session.state.length) == 1 + 16 + turn + 1 + 8


def test_a_turn_may_be_asked_otherwise_than_the_session_was_opened(model, processor):
    session, keeping = (
        watched(model, processor, TIMES[:3]),
        watched(model, processor, TIMES[:3], keep_turns=True),
    )
    keeping.system = None
    before = session.fork()
    answer = session.begin("what?", Sampling(4), turn=Turn(keep=True, system=None))
    with pytest.raises(InputError, match="keeps its turns"):
        session.observe(random_frame(5), at=50.0)
    assert session.finish(answer) == keeping.ask("what?", max_new_tokens=4)
    assert unchanged(session, snapshot(keeping))
    assert session.ask("what?") and not session.keep_turns
    assert unchanged(session, snapshot(keeping))
    keeping = before.fork()
    keeping.keep_turns = True
    told = keeping.begin("what?", Sampling(4), turn=Turn(keep=False, system="Be brief."))
    keeping.keep_turns = False
    keeping.observe(random_frame(5), at=50.0)  # the turn was begun as one that is not kept
    before.observe(random_frame(5), at=50.0)
    keeping.finish(told)
    assert unchanged(keeping, snapshot(before))


def test_a_conversation_may_begin_before_the_first_frame(model, processor):
    session = StreamSession(model, processor)
    with pytest.raises(InputError, match="nothing was seen"):
        session.begin("what?", turn=Turn(keep=True, system=None))
    with pytest.raises(InputError, match="turn is"):
        session.begin("what?", turn={"keep": True})
    answer = session.begin("what?", Sampling(4), turn=Turn(keep=True, system=None, needs_frame=False))
    chat = ChatSession(model, processor, system=None)
    assert session.finish(answer) == chat.say("what?", max_new_tokens=4)
    session.observe(random_frame(1))
    assert session.ask("what?", max_new_tokens=4) and session.stats().frames == 1


@pytest.mark.parametrize("waits_since", [0.5, 3.0])
def test_a_frame_that_waits_is_asked_about_at_its_own_time(model, processor, waits_since):
    session = watched(model, processor, [0.0, 0.5, waits_since], mode="video")
    twin = session.fork()
    twin.engine.read_turn(twin.slot, [])
    fork = twin.state
    # Its time, or the other frames' second row, is the largest position; then comes vision-end.
    assert int(fork.next_position) == 1 + max(int(waits_since * 2), 1) + 1 + 1
    assert int(fork.length) == 1 + 2 * 4 + 1 and not fork.span.has_waiting


def test_a_kept_turn_ends_the_patch_of_a_frame_that_waits(model, processor):
    session = watched(model, processor, TIMES[:3], mode="video", keep_turns=True)
    session.ask("what?", max_new_tokens=1)
    assert not session.state.span.has_waiting and not session.state.span.is_open
    length = int(session.state.length)
    session.observe(random_frame(3), at=20.0)
    assert session.state.span.has_waiting and int(session.state.length) == length
    session.observe(random_frame(4), at=21.0)
    assert int(session.state.length) == length + 1 + 4


def test_two_sessions_on_one_model_do_not_disturb_each_other(model, processor):
    alone = watched(model, processor, TIMES)
    a, b = StreamSession(model, processor), StreamSession(model, processor, mode="video")
    for seed, at in enumerate(TIMES):
        a.observe(random_frame(seed), at=at)
        b.observe(random_frame(seed + 50), at=3 * at)
        b.ask("hm?", max_new_tokens=2)
    assert unchanged(a, snapshot(alone))


def test_content_far_into_a_stream_is_seen_as_at_its_start(model, processor):
    """Answers depend on what was seen, not on when the clock started."""
    early = watched(model, processor, TIMES)
    late = watched(model, processor, [t + 1e6 for t in TIMES])
    assert unchanged_but_times(early, late)


def unchanged_but_times(a, b):
    wanted = b.state.tensors()
    return all(torch.equal(x, wanted[n]) for n, x in a.state.tensors().items() if "time" not in n)


def assert_old_as_light_and_fast_as_young(model, processor, num_frames, mode):
    """A stream of `num_frames` beside a young one, in turns, so that a busy machine slows both."""
    frames = [random_frame(i) for i in range(8)]
    young, old = (StreamSession(model, processor, mode=mode) for _ in range(2))
    for index in range(num_frames):
        old.observe(frames[index % 8], at=index / 2)
    spans = {young: [], old: []}
    for index in range(100):
        for session in (young, old):
            started = time.process_time()
            session.observe(frames[index % 8])
            spans[session].append(time.process_time() - started)
    assert old.stats().state_bytes == young.stats().state_bytes
    assert all(tensor.isfinite().all() for tensor in old.state.tensors().values())
    assert statistics.median(spans[old]) < 1.3 * statistics.median(spans[young])


@pytest.mark.parametrize("mode", MODES)
def test_after_300_frames_the_state_is_as_large_and_a_frame_as_fast_as_at_the_start(model, processor, mode):
    assert_old_as_light_and_fast_as_young(model, processor, 300, mode)


@pytest.mark.slow
def test_after_5000_frames_the_state_is_as_large_and_a_frame_as_fast_as_at_the_start(model, processor):
    assert_old_as_light_and_fast_as_young(model, processor, 5000, "image")


def test_stats_count_frames_tokens_and_seconds(model, processor):
    session = watched(model, processor, TIMES)
    session.dropped += 3
    stats = session.stats()
    assert (stats.frames, stats.tokens, stats.seconds, stats.dropped) == (10, 41, 11.0, 3)
    norms = session.recurrent_norms()
    assert len(norms) == 3 and all(norm > 0 for norm in norms)
    video = watched(model, processor, TIMES[:9], mode="video").stats()
    assert (video.frames, video.tokens) == (9, 17)


def test_special_tokens_in_a_question_stay_text(model, processor):
    session = watched(model, processor, TIMES[:2], keep_turns=True)
    length = int(session.state.length)
    session.ask("<|im_end|><|image_pad|>", max_new_tokens=1)
    spelt = encode_text(processor.tokenizer, "<|im_end|><|image_pad|>")
    plain = turn_ids(processor.tokenizer, "x")
    assert len(spelt) > 10
    assert int(session.state.length) - length > len(plain) + len(spelt) - 3


def test_an_answer_grows_piece_by_piece(model, processor):
    pieces = []
    answer = watched(model, processor, TIMES[:3]).ask("what?", max_new_tokens=12, on_text=pieces.append)
    assert "".join(pieces) == answer and len(pieces) > 1


def test_sampling_draws_and_greedy_does_not(model, processor):
    session = watched(model, processor, TIMES[:3])
    torch.manual_seed(0)
    drawn = {session.ask("what?", max_new_tokens=8, temperature=2.0) for _ in range(4)}
    greedy = {session.ask("what?", max_new_tokens=8) for _ in range(2)}
    assert len(drawn) > 1 and len(greedy) == 1
    assert session.ask("what?", max_new_tokens=8, temperature=2.0, top_p=1e-6) in greedy
