"""The captured engine: replay equals eager, bit for bit, and streams do not feel each other."""

import gc

import pytest
import torch
from PIL import Image

from infinitevl import ChatSession, Engine, Sampling, StreamSession
from infinitevl.engine.graph_runner import GraphRunner
from infinitevl.engine.slots import Facts
from infinitevl.ops.linear.quantized import KINDS
from tests.engine.streams import snapshot, unchanged
from tests.engine.test_engine import *  # noqa: F403 (the same tests, with the model on the GPU)
from tests.support import random_frame, relative_error, small_model, tiny_model, tiny_processor

if torch.cuda.is_available():  # both need triton
    from infinitevl.ops.linear.triton import quantized
    from infinitevl.ops.linear.triton.fp8_dot import add_dot_

pytestmark = pytest.mark.gpu

MODES = ("image", "video")


@pytest.fixture(scope="module")
def model():
    model = tiny_model().cuda()
    model.config.eos_token_id = model.generation_config.eos_token_id = 499
    return model


@pytest.fixture
def processor():
    return tiny_processor()


def pair(model, processor, **kwargs):
    """Two sessions that have seen nothing: one replays, one runs every step anew."""
    return [
        StreamSession.on(Engine(model, processor, num_slots=2, enforce_eager=eager, **kwargs))
        for eager in (False, True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_sinks", [0, 1, 7])
def test_replay_equals_eager_before_the_window_fills_at_the_wrap_and_two_windows_later(
    processor, mode, dtype, num_sinks
):
    model = small_model(num_sink_tokens=num_sinks).to("cuda", dtype)
    model.config.eos_token_id = model.generation_config.eos_token_id = 399
    window = model.config.text_config.num_window_slots
    replayed, rerun = pair(model, processor, mode=mode)
    per_frame = replayed.engine.steps.num_tokens / (2 if mode == "video" else 1)
    for index in range(int(3 * window / per_frame) + 3):
        for session in (replayed, rerun):
            session.observe(random_frame(index), at=index / 3)
        if index % 5 == 0:
            assert unchanged(replayed, snapshot(rerun)), f"after frame {index}"
            assert replayed.ask("what?", max_new_tokens=5) == rerun.ask("what?", max_new_tokens=5)
    assert int(replayed.state.length) > 2.5 * window and unchanged(replayed, snapshot(rerun))


@pytest.mark.parametrize("quantization", KINDS)
def test_replay_equals_eager_with_quantized_weights(processor, quantization, monkeypatch):
    monkeypatch.setattr(quantized, "FP8_ROWS", 2)  # a frame of this model is read in fp8, a token is not
    multiplied = []
    monkeypatch.setattr(
        quantized, "add_dot_", lambda *inputs: (multiplied.append(inputs[1].dtype), add_dot_(*inputs))
    )
    replayed, rerun = pair(tiny_model().to("cuda", torch.bfloat16), processor, quantization=quantization)
    for index in range(12):
        for session in (replayed, rerun):
            session.observe(random_frame(index), at=index / 3)
        assert unchanged(replayed, snapshot(rerun)), f"after frame {index}"
    assert replayed.ask("what?", max_new_tokens=5) == rerun.ask("what?", max_new_tokens=5)
    assert set(multiplied) == ({torch.float8_e4m3fn} if quantization == "fp8" else set())


@pytest.mark.parametrize("num_sinks", [0, 5])
@pytest.mark.parametrize("mode", MODES)
def test_a_captured_stream_equals_the_cpus(processor, mode, num_sinks):
    here, there = (
        StreamSession(tiny_model(num_sink_tokens=num_sinks).to(device), processor, mode=mode)
        for device in ("cuda", "cpu")
    )
    for index in range(9):
        for session in (here, there):
            session.observe(random_frame(index), at=0.7 * index)
    wanted = there.state.tensors()
    for name, tensor in here.state.tensors().items():
        assert relative_error(tensor.cpu(), wanted[name]) < 1e-5, name
    assert here.ask("what?", max_new_tokens=6) == there.ask("what?", max_new_tokens=6)


def test_the_frame_at_which_a_step_is_captured_is_read_once(model, processor):
    session = StreamSession(model, processor)
    tokens = session.engine.steps.num_tokens
    for count in (1, 2, 3):
        session.observe(random_frame(count))
        assert int(session.state.length) == 1 + count * tokens and session.stats().frames == count
    text = session.ask("what?", max_new_tokens=3)
    assert int(session.state.length) == 1 + 3 * tokens
    assert session.ask("what?", max_new_tokens=3) == text


def test_a_step_is_captured_once(model, processor):
    session = StreamSession(model, processor)
    for index in range(6):
        session.observe(random_frame(index))
        session.ask("what?", max_new_tokens=6)
    runner = session.engine.runner
    assert isinstance(runner, GraphRunner)
    before = dict(runner._replays)
    for index in range(6, 20):
        session.observe(random_frame(index))
        session.ask("what?", max_new_tokens=6)
    assert runner._replays == before


def test_what_is_read_of_a_state_comes_before_the_next_step(model, processor):
    session = StreamSession(model, processor)
    for index in range(3):  # a capture waits for the whole device
        session.observe(random_frame(index))
    wanted, state = snapshot(session), session.state
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)  # the caller's stream has much to do before it reads
    late = {name: tensor.clone() for name, tensor in state.tensors().items()}
    session.observe(random_frame(3))
    session.park()
    torch.cuda.synchronize()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in late.items())


def test_no_garbage_is_collected_while_a_step_is_captured(model, processor):
    """It could hold graphs of an engine that nobody has any more, and freeing them would end the capture."""
    session, collects = StreamSession(model, processor), {}
    see = session.engine.steps.encode

    def watched(*args):
        collects[torch.cuda.is_current_stream_capturing()] = gc.isenabled()
        return see(*args)

    session.engine.steps.encode = watched
    session.observe(random_frame(0))
    assert collects == {False: True, True: False} and gc.isenabled()


def test_frames_of_every_kind_and_size_are_scaled_as_on_the_cpu(model, processor):
    array = torch.randint(0, 256, (61, 97, 3), dtype=torch.uint8)
    big = Image.fromarray(array.numpy())
    sessions = [StreamSession(model, processor) for _ in range(3)]
    for session, frame in zip(sessions, (big, array.numpy(), array.permute(2, 0, 1).cuda()), strict=True):
        session.observe(frame)
    assert unchanged(sessions[1], snapshot(sessions[0])) and unchanged(sessions[2], snapshot(sessions[0]))
    on_cpu = StreamSession(tiny_model(), processor)
    on_cpu.observe(big)
    wanted = on_cpu.state.tensors()
    for name, tensor in sessions[0].state.tensors().items():
        assert relative_error(tensor.cpu(), wanted[name]) < 1e-5, name


def test_more_frames_need_no_more_memory(model, processor):
    session = StreamSession(model, processor)

    def watch(count):
        for index in range(count):
            session.observe(random_frame(index % 8))
        session.ask("what?", max_new_tokens=4)
        session.engine.settle()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    watch(50)
    assert watch(50) == watch(400)


def test_many_frames_asked_for_at_once_come_in_order(model, processor):
    """The host runs ahead of the device; buffers that are still in use are not written."""
    fast, slow = StreamSession(model, processor), StreamSession(model, processor)
    frames = [random_frame(index) for index in range(60)]
    for index, frame in enumerate(frames):
        fast.observe(frame, at=index / 3)
    for index, frame in enumerate(frames):
        slow.observe(frame, at=index / 3)
        torch.cuda.synchronize()
    assert unchanged(fast, snapshot(slow))


def test_the_error_in_bfloat16_does_not_grow_with_the_stream(processor):
    errors = []
    exact, rounded = (
        StreamSession(small_model().to("cuda", dtype), processor) for dtype in (torch.float32, torch.bfloat16)
    )
    for index in range(400):
        for session in (exact, rounded):
            session.observe(random_frame(index % 16), at=index / 2)
        if index + 1 in (40, 400):
            states = [session.state.tensors() for session in (exact, rounded)]
            names = [name for name in states[0] if name.endswith("recurrent_state")]
            errors.append(max(relative_error(states[1][name], states[0][name]) for name in names))
    assert errors[1] < 1.5 * errors[0] + 1e-3, errors


def test_streams_out_of_order_in_a_batch_keep_their_own_state(model, processor):
    engine = Engine(model, processor, num_slots=5)
    sessions = [StreamSession.on(engine) for _ in range(3)]
    alone = [StreamSession(model, processor) for _ in range(3)]
    for index in range(20):
        order = [(index + n) % 3 for n in range(1 + index % 3)]
        engine.observe([(sessions[n], random_frame(index + 100 * n), None) for n in order])
        for n in order:
            alone[n].observe(random_frame(index + 100 * n))
    for ours, theirs in zip(sessions, alone, strict=True):
        wanted = theirs.state.tensors()
        for name, tensor in ours.state.tensors().items():
            assert relative_error(tensor, wanted[name]) < 1e-5, name


IMAGE = {"type": "image", "image": Image.fromarray(random_frame(3).permute(1, 2, 0).numpy())}
VIDEO = {
    "type": "video",
    "video": [Image.fromarray(random_frame(n).permute(1, 2, 0).numpy()) for n in range(4)],
    "fps": 2.0,
}
TURNS = ["hello", [IMAGE, {"type": "text", "text": "what is it"}], [VIDEO, IMAGE], "again " * 600]


def test_a_chat_that_replays_equals_one_that_runs_every_step_anew_and_the_cpus(model, processor):
    engines = [Engine(model, processor, enforce_eager=eager) for eager in (False, True)]
    replayed, rerun = map(ChatSession.on, engines)
    there = ChatSession(tiny_chatter("cpu"), processor)
    for _ in range(2):  # captured, then replayed
        for turn in TURNS:
            answer = replayed.say(turn, max_new_tokens=6)
            assert rerun.say(turn, max_new_tokens=6) == answer == there.say(turn, max_new_tokens=6)
            assert unchanged(replayed, snapshot(rerun))
    assert {key[0] for key in engines[0].runner._replays} >= {"read", "read embeds", "token"}
    wanted = there.state.tensors()
    for name, tensor in replayed.state.tensors().items():
        assert relative_error(tensor.cpu().float(), wanted[name].float()) < 1e-4, name


def test_chats_and_streams_on_a_gpu_answer_together_are_forked_parked_and_saved(model, processor, tmp_path):
    engine = Engine(model, processor, num_slots=6, mode="video")
    chat, stream = ChatSession.on(engine), StreamSession.on(engine)
    for index in range(3):
        stream.observe(random_frame(index))
    chat.say(TURNS[1], max_new_tokens=4)
    with chat.fork() as twin:
        wanted = twin.say("and now", max_new_tokens=6), stream.ask("what?", max_new_tokens=6)
    chat.park()
    begun = chat.begin("and now", Sampling(6)), stream.begin("what?", Sampling(6))
    assert (chat.finish(begun[0]), stream.finish(begun[1])) == wanted
    assert all(each.slot.facts == Facts.of(each.state) for each in (chat, stream))
    chat.save(tmp_path / "chat")
    loaded = ChatSession.load(tmp_path / "chat", model, processor)
    assert loaded.say("more", max_new_tokens=4) == chat.say("more", max_new_tokens=4)
    assert unchanged(loaded, snapshot(chat))


def tiny_chatter(device):
    model = tiny_model().to(device)
    model.config.eos_token_id = model.generation_config.eos_token_id = 499
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("act", ["open_span", "add_frames", "hold"])
def test_an_interrupt_on_a_gpu_leaves_a_frame_in_the_stream_or_none_of_it(
    model, processor, mode, moment, act, monkeypatch
):
    session, wanted = (StreamSession(model, processor, mode=mode) for _ in range(2))
    runner = session.engine.runner

    def interrupt(*args):
        if moment == "after":
            getattr(GraphRunner, act)(runner, *args)
        monkeypatch.undo()
        raise KeyboardInterrupt

    for index in range(8):
        for one in (session, wanted):
            if one is session and index in (0, 1, 4, 5):
                before = snapshot(session)
                monkeypatch.setattr(runner, act, interrupt)
                try:
                    session.observe(random_frame(index), at=index)
                except KeyboardInterrupt:
                    assert session.slot.facts == Facts.of(session.state)
                    if not unchanged(session, before) and session.slot.facts.num_frames > index:
                        continue
                    session.observe(random_frame(index), at=index)
                monkeypatch.undo()
                continue
            one.observe(random_frame(index), at=index)
        if mode == "image" or index % 2:
            assert unchanged(session, snapshot(wanted)), index


@pytest.mark.slow
def test_after_a_million_tokens_memory_and_speed_are_as_at_the_start(processor):
    """Bytes after 1 000 000 tokens are those after 20 000, and frames take as long."""
    model, frame = small_model().to("cuda", torch.bfloat16), random_frame(0).cuda()
    session = StreamSession(model, processor)
    per_frame = session.engine.steps.num_tokens
    held, taken = [], []
    for tokens in (20_000, 1_000_000):
        while session.slot.facts.num_frames * per_frame < tokens:
            session.observe(frame)
        session.engine.settle()
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with session.engine.runner.main_lane():
            started.record()
        for _ in range(1000):
            session.observe(frame)
        with session.engine.runner.main_lane():
            ended.record()
        session.engine.settle()
        taken.append(started.elapsed_time(ended))
    assert held[0] == held[1]
    assert taken[1] < 1.05 * taken[0]
