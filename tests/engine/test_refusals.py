"""What cannot be used is refused in our words, and a session stays as it was and usable."""

import copy
import json
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from infinitevl import ChatSession, Engine, Frame, StreamSession
from infinitevl.errors import InfiniteVLError, InputError, StateError
from infinitevl.model.weights import fingerprint
from tests.engine.streams import MODES, TIMES, snapshot, unchanged, watched
from tests.support import random_frame, relative_error, tiny_model

NO_TIMES = [
    float("nan"),
    float("inf"),
    10**400,
    1.7e18,
    -1e15,
    "soon",
    [1.0],
    torch.ones(2),
    1j,
    Decimal("NaN"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [1.0, *NO_TIMES], ids=str)
def test_bad_times_are_refused_and_the_session_stays_usable(model, processor, mode, at):
    session = watched(model, processor, [5.0, 6.0], mode=mode)
    before = snapshot(session)
    with pytest.raises(InputError, match="time"):
        session.observe(random_frame(3), at=at)
    assert unchanged(session, before)
    session.observe(random_frame(3), at=6.0)
    session.observe(random_frame(4))
    assert session.stats().seconds == 7.0


@pytest.mark.parametrize("at", NO_TIMES, ids=str)
def test_a_bad_time_of_the_first_frame_opens_no_span(model, processor, at):
    session = StreamSession(model, processor)
    before = snapshot(session)
    with pytest.raises(InputError, match="time"):
        session.observe(random_frame(0), at=at)
    assert unchanged(session, before)


@pytest.mark.parametrize("tokens_per_second", [1, 2, 25])
def test_the_largest_times_still_count_exactly(processor, tokens_per_second):
    model = tiny_model()
    model.config.vision_config.tokens_per_second = tokens_per_second
    session = StreamSession(model, processor)
    largest = int(1e12 / tokens_per_second)
    session.observe(random_frame(0), at=-largest)
    session.observe(random_frame(1), at=largest)
    session.observe(random_frame(2))
    assert int(session.state.next_position) == 1 + (2 * largest + 1) * tokens_per_second + 1


ONE_AND_A_HALF = [1.5, np.float32(1.5), np.array(1.5), Decimal("1.5"), Fraction(3, 2), torch.tensor(1.5)]


@pytest.mark.parametrize("at", ONE_AND_A_HALF, ids=lambda at: type(at).__name__)
def test_a_time_may_be_any_kind_of_number(model, processor, at):
    session = StreamSession(model, processor)
    session.observe(random_frame(0), at=np.int64(0))
    session.observe(random_frame(1), at=at)
    assert session.stats().seconds == 1.5


@pytest.mark.parametrize("at", [0.29, 1.1, 2.01, 4.1, 8.2])
def test_a_time_is_counted_in_the_nearest_microsecond(model, processor, at):
    assert watched(model, processor, [0.0, at]).stats().seconds == at


@pytest.mark.parametrize("frame", ["absent.png", np.zeros((0, 5, 3), np.uint8), b"no picture", 7])
def test_frames_that_are_no_pictures_are_refused_and_the_session_stays_usable(model, processor, frame):
    session = watched(model, processor, TIMES[:2])
    before = snapshot(session)
    with pytest.raises(InfiniteVLError):
        session.observe(frame, at=60.0)
    assert unchanged(session, before)


def test_bad_questions_are_refused(model, processor):
    session = StreamSession(model, processor)
    with pytest.raises(InputError, match="observe a frame"):
        session.ask("what?")
    session.observe(random_frame(0))
    for question in ("", "  ", None, 7):
        with pytest.raises(InputError, match="the question is empty or no text"):
            session.ask(question)
    with pytest.raises(InputError, match="max_new_tokens"):
        session.ask("what?", max_new_tokens=0)
    with pytest.raises(InputError, match="top_p"):
        session.ask("what?", temperature=1.0, top_p=0.0)


def test_an_unknown_mode_is_refused(model, processor):
    with pytest.raises(InputError, match="mode is 'both'"):
        StreamSession(model, processor, mode="both")


@pytest.mark.parametrize("size", [0, 100, -28, 56.0, "big", (56,), (56, 0), (56, 28.0), (28, 28, 28), b"28"])
def test_sizes_that_no_frame_can_have_are_refused(model, processor, size):
    with pytest.raises(InputError, match=r"frame_size is .* multiples of 28"):
        StreamSession(model, processor, frame_size=size)


@pytest.mark.parametrize("size", [56, np.int64(56), [56, 56], (np.int32(56), 56), torch.Size([56, 56])])
def test_a_size_may_be_any_kind_of_whole_number(model, processor, size, tmp_path):
    session = watched(model, processor, TIMES[:1], frame_size=size)
    assert session.frame_size == (56, 56)
    session.save(tmp_path / "s")
    assert StreamSession.load(tmp_path / "s", model, processor).frame_size == (56, 56)


class Stop(BaseException):
    """As KeyboardInterrupt, which is no Exception either."""


def stop_after(num_pieces):
    """An on_text that stops the answer in its midst."""
    pieces = []

    def on_text(piece):
        pieces.append(piece)
        if len(pieces) == num_pieces:
            raise Stop

    return on_text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keep_turns", [False, True])
def test_a_turn_that_is_cut_short_leaves_the_stream_as_it_was(model, processor, mode, keep_turns):
    session = watched(model, processor, TIMES[:3], mode=mode, keep_turns=keep_turns)
    before = snapshot(session)
    with pytest.raises(Stop):
        session.ask("what?", max_new_tokens=12, on_text=stop_after(2))
    assert unchanged(session, before)


def test_a_chat_turn_that_is_cut_short_was_never_said(model, processor):
    chat = ChatSession(model, processor)
    chat.say("hello", max_new_tokens=2)
    before = snapshot(chat)
    with pytest.raises(Stop):
        chat.say("and now?", max_new_tokens=12, on_text=stop_after(2))
    assert unchanged(chat, before)


def test_a_kept_turn_stays_at_the_addresses_of_the_state(model, processor):
    session = watched(model, processor, TIMES[:3], keep_turns=True)
    chat = ChatSession(model, processor)
    for each, talk in ((session, session.ask), (chat, chat.say)):
        addresses = [tensor.data_ptr() for tensor in each.state.tensors().values()]
        talk("what?", max_new_tokens=2)
        assert addresses == [tensor.data_ptr() for tensor in each.state.tensors().values()]


def test_a_pair_that_was_not_taken_in_still_waits(model, processor, monkeypatch):
    session = watched(model, processor, TIMES[:3], mode="video")
    before = snapshot(session)
    monkeypatch.setattr("infinitevl.engine.steps.clip_patches", lambda *args: stop_after(1)(args))
    with pytest.raises(Stop):
        session.observe(random_frame(3), at=20.0)
    assert unchanged(session, before) and session.state.span.has_waiting


TEACHER = ["full_attention", "linear_attention"] * 2


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_of_a_model_with_full_attention_ends_where_its_room_does(processor, mode, tmp_path):
    model, num_frames = tiny_model(layer_types=TEACHER), 0
    session = StreamSession(model, processor, mode=mode, max_length=18)
    with pytest.raises(StateError, match="room for 18 tokens"):
        while True:
            before = snapshot(session)
            session.observe(random_frame(num_frames))
            num_frames += 1
    assert num_frames == {"image": 4, "video": 9}[mode] and unchanged(session, before)
    with pytest.raises(StateError, match="room for 18 tokens"):
        session.ask("what?")
    session.save(tmp_path / "s")
    loaded = StreamSession.load(tmp_path / "s", model, processor)
    assert unchanged(loaded, before) and loaded.state.max_length == 18


def test_a_frame_that_opens_a_span_finds_room_for_all_of_it_or_none(processor):
    session = StreamSession(tiny_model(layer_types=TEACHER), processor, max_length=4)
    before = snapshot(session)
    with pytest.raises(StateError, match="would make it 5"):
        session.observe(random_frame(0))
    assert unchanged(session, before)


@pytest.mark.parametrize("max_length", [None, 0, -5, 2.5])
def test_a_model_with_full_attention_needs_a_length(processor, max_length):
    with pytest.raises(StateError, match=f"max_length is {max_length}"):
        StreamSession(tiny_model(layer_types=TEACHER), processor, max_length=max_length)


def test_a_chat_with_full_attention_has_room_for_what_the_config_or_the_caller_says(processor):
    model = tiny_model(layer_types=TEACHER, max_position_embeddings=300)
    assert ChatSession(model, processor).state.max_length == 300
    chat = ChatSession(model, processor, max_length=100)
    before = snapshot(chat)
    with pytest.raises(StateError, match="room for 100 tokens"):
        chat.say("hello " * 100)
    assert unchanged(chat, before)
    assert ChatSession(tiny_model(), processor).state.max_length is None


@pytest.mark.parametrize("settings", ["", "[1]", "{}", "{", json.dumps({"mode": "image"})])
def test_a_state_without_the_settings_of_a_stream_is_no_stream(model, processor, tmp_path, settings):
    model.allocate_state().save(tmp_path / "s", fingerprint(model, model.config), settings=settings)
    with pytest.raises(StateError, match="not the settings of a stream"):
        StreamSession.load(tmp_path / "s", model, processor)


def test_a_state_that_does_not_fit_its_settings_is_refused(model, processor, tmp_path):
    video = watched(model, processor, TIMES[:3], mode="video")
    video.mode = "image"
    video.save(tmp_path / "s")
    with pytest.raises(StateError, match=r"span\.waiting"):
        StreamSession.load(tmp_path / "s", model, processor)


def test_what_is_made_in_inference_mode_works_outside_of_it(model, processor):
    with torch.inference_mode():
        chat, stream = ChatSession(model, processor), StreamSession(model, processor)
        shared = StreamSession.on(Engine(model, processor))
        stream.observe(random_frame(0))
        twin = stream.fork()
        ids = torch.tensor([[1, 2, 3]])
        out = model(input_ids=ids)
    for session in (stream, shared, twin):
        session.observe(random_frame(1))
        assert session.ask("what?", max_new_tokens=2) is not None
    assert chat.say("hello", max_new_tokens=2) is not None
    with torch.no_grad():
        model(input_ids=ids, past_key_values=out.past_key_values)


def test_a_model_in_the_wrapping_of_peft_runs_with_its_adapter(processor):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    plain = watched(model, processor, TIMES[:3])
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    merged = tiny_model()
    wrapped_again = peft.get_peft_model(merged, wrapped.peft_config["default"])
    wrapped_again.load_state_dict(wrapped.state_dict())
    merged = wrapped_again.merge_and_unload()
    given, wanted = (watched(each, processor, TIMES[:3]).state.tensors() for each in (wrapped, merged))
    for name, tensor in given.items():
        assert relative_error(tensor.float(), wanted[name].float()) < 1e-5, name
    assert any(
        relative_error(given[name].float(), x.float()) > 1e-3 for name, x in plain.state.tensors().items()
    )
    assert ChatSession(wrapped, processor).say("hello", max_new_tokens=2) is not None
    with pytest.raises(InputError, match="merge_and_unload"):
        StreamSession(wrapped, processor, quantization="int8")


def test_a_frame_brings_its_time_and_what_was_dropped_before_it(model, processor, tmp_path):
    session, pixels = StreamSession(model, processor), random_frame(0).permute(1, 2, 0).numpy()
    for time, dropped in ((3.0, 0), (4.5, 2), (5.0, 1)):
        session.observe(Frame(pixels, time, dropped))
    stats = session.stats()
    assert (stats.frames, stats.seconds, stats.dropped) == (3, 5.0, 3)
    before = snapshot(session)
    with pytest.raises(InputError, match="its own time"):
        session.observe(Frame(pixels, 6.0), at=6.0)
    assert unchanged(session, before)
    session.save(tmp_path / "s")
    assert StreamSession.load(tmp_path / "s", model, processor).dropped == 3


def test_counting_a_stream_asks_nothing_of_the_device(model, processor, monkeypatch):
    session = watched(model, processor, TIMES[:3])
    monkeypatch.setattr(session.engine.runner, "settle", lambda: pytest.fail("the device was waited for"))
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: pytest.fail("a tensor was read"))
    assert session.stats().tokens == 13


@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.engine.observe([session]),
        lambda session: session.begin("what?", 5),
        lambda session: session.finish("an answer"),
        lambda session: session.cancel(None),
        lambda session: StreamSession.on(session.model),
        lambda session: ChatSession.on(session.model),
        lambda session: StreamSession(session.processor, session.model),
        lambda session: ChatSession(session.processor, session.model),
        lambda session: Engine(session.processor, session.model),
    ],
    ids=["frame", "sampling", "answer", "no answer", "engine", "chat's engine", "swapped", "chat", "model"],
)
def test_an_argument_of_another_kind_is_named(model, processor, use):
    session = watched(model, processor, [0.0])
    before = snapshot(session)
    with pytest.raises(InputError):
        use(session)
    assert unchanged(session, before)


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, pickle.dumps])
def test_sessions_and_engines_say_how_they_are_copied(model, processor, twin):
    session = watched(model, processor, [0.0])
    with pytest.raises(InputError, match=r"fork\(\) makes a copy"):
        twin(session)
    with pytest.raises(InputError, match="one in each process"):
        twin(session.engine)
