"""Attention sinks in the whole model: the first tokens of a stream are seen for ever."""

import pytest
import torch

from infinitevl import CheckpointError, Engine, Sampling, StateError, StreamSession
from infinitevl.config import FULL, InfiniteVLConfig, InfiniteVLTextConfig
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.weights import fingerprint
from infinitevl.ops import reference
from infinitevl.state import StreamState
from infinitevl.state_file import read_file
from tests.engine.streams import TIMES, snapshot, unchanged, watched
from tests.support import (
    DATA,
    random_frame,
    relative_error,
    tiny_config,
    tiny_model,
    tiny_processor,
)

SINKS, WINDOW = 4, 8  # as many slots as the tiny model's window
ALL_WINDOWS = ["sliding_attention"] * 4


@pytest.fixture(scope="module")
def model():
    model = tiny_model(num_sink_tokens=SINKS, sliding_window=WINDOW)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def ids():
    return torch.randint(0, 400, (2, 50), generator=torch.Generator().manual_seed(0))


def test_a_model_of_windows_with_sinks_equals_full_attention_with_that_mask(ids, monkeypatch):
    """Every layer of a model that has never heard of a ring is given the definition."""
    model = tiny_model(layer_types=ALL_WINDOWS, num_sink_tokens=SINKS, sliding_window=WINDOW)
    full = InfiniteVLForConditionalGeneration(tiny_config(layer_types=[FULL] * 4)).eval()
    full.load_state_dict(model.state_dict())

    def masked(q, k, v, ring, length, window, num_sinks):
        return reference.window_attention(q, k, v, WINDOW, 0, SINKS)

    with torch.no_grad():
        given = model(input_ids=ids).logits
        alone = model(input_ids=ids, use_cache=False).logits
        cache, steps = None, []
        for column in ids.split(1, dim=1):
            out = model(input_ids=column, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
        from infinitevl.ops.attention import torch as plain

        monkeypatch.setattr(plain.window_chunk, "__kwdefaults__", {"attend": masked})
        wanted = full(input_ids=ids, use_cache=False).logits
    for logits in (given, alone, torch.cat(steps, 1)):
        assert relative_error(logits, wanted) < 1e-5


def test_what_lies_between_sinks_and_window_is_forgotten_and_sinks_are_not(ids):
    """One layer: what a token further back says reaches no later one; what a sink says does."""
    model = tiny_model(
        num_hidden_layers=1, layer_types=ALL_WINDOWS[:1], num_sink_tokens=SINKS, sliding_window=WINDOW
    )

    def last(place):
        changed = ids.clone()
        changed[:, place] = 401
        with torch.no_grad():
            return model(input_ids=changed).logits[:, -1]

    with torch.no_grad():
        usual = model(input_ids=ids).logits[:, -1]
    for place in (SINKS, 20, 50 - WINDOW - 1):
        assert torch.equal(last(place), usual)
    for place in (0, SINKS - 1, 50 - WINDOW, 49):
        assert not torch.equal(last(place), usual)


def test_greedy_answers_equal_reading_everything_again_also_left_padded(model, ids):
    short = torch.cat([torch.zeros(1, 43, dtype=torch.int64), ids[1:, :7]], 1)
    batch = torch.cat([ids[:1], short])
    mask = torch.ones_like(batch)
    mask[1, :43] = 0
    given = model.generate(batch, attention_mask=mask, max_new_tokens=16, do_sample=False)
    for row, prompt in enumerate((ids[:1], ids[1:, :7])):
        with torch.no_grad():
            for _ in range(16):
                logits = model(input_ids=prompt, use_cache=False).logits
                prompt = torch.cat([prompt, logits[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(given[row, 50:], prompt[0, -16:])


def test_gradients_of_the_weights_equal_those_of_the_definition(ids, monkeypatch):
    model = tiny_model(layer_types=ALL_WINDOWS, num_sink_tokens=SINKS, sliding_window=WINDOW).double()

    def gradients():
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [p.grad for p in model.model.language_model.layers.parameters()]

    given = gradients()
    from infinitevl.ops.attention import torch as plain

    def masked(q, k, v, ring, length, window, num_sinks):
        return reference.window_attention(q, k, v, window, 0, num_sinks)

    monkeypatch.setattr(plain.window_chunk, "__kwdefaults__", {"attend": masked})
    for mine, theirs in zip(given, gradients(), strict=True):
        assert relative_error(mine, theirs) < 1e-9


def test_sequences_that_share_a_row_have_sinks_of_their_own(model):
    lengths = [3, 13, 1, 33]
    ids = torch.randint(0, 400, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, 1, -1)
    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions, sequence_lengths=lengths).logits
        alone = [model(input_ids=part).logits for part in ids.split(lengths, dim=1)]
    assert relative_error(together, torch.cat(alone, 1)) < 1e-5


def test_fork_save_and_park_keep_the_sinks(model, tmp_path):
    processor = tiny_processor()
    session = watched(model, processor, TIMES)
    before = snapshot(session)
    with session.fork() as twin:
        twin.observe(random_frame(99), at=20.0)
        assert unchanged(session, before) and not unchanged(twin, before)
    session.park()
    assert session.ask("what?", max_new_tokens=4) == session.ask("what?", max_new_tokens=4)
    assert unchanged(session, before)
    session.save(tmp_path / "s")
    again = StreamSession.load(tmp_path / "s", model, processor)
    assert unchanged(again, before)
    for each in (session, again):
        each.observe(random_frame(50), at=30.0)
    assert unchanged(again, snapshot(session))


def test_many_streams_with_sinks_hold_what_each_holds_alone(model):
    engine = Engine(model, tiny_processor(), num_slots=6)
    streams = [StreamSession.on(engine) for _ in range(3)]
    for seed, at in enumerate(TIMES):
        engine.observe([(s, random_frame(100 * n + seed), at) for n, s in enumerate(streams)])
    answers = [stream.begin("what?", Sampling(5)) for stream in streams]
    texts = [stream.finish(answer) for stream, answer in zip(streams, answers, strict=True)]
    for number, stream in enumerate(streams):
        alone = StreamSession(model, tiny_processor())
        for seed, at in enumerate(TIMES):
            alone.observe(random_frame(100 * number + seed), at=at)
        wanted = alone.state.tensors()
        for name, tensor in stream.state.tensors().items():
            assert relative_error(tensor, wanted[name]) < 1e-5, name
        assert texts[number] == alone.ask("what?", max_new_tokens=5)


def test_a_saved_state_says_its_sinks_and_without_any_is_in_the_format_before(tmp_path):
    for num_sinks, version in ((0, "2"), (SINKS, "3")):
        model = tiny_model(num_sink_tokens=num_sinks, sliding_window=12 - num_sinks)
        model.allocate_state().save(tmp_path / str(num_sinks), "mark")
        metadata = read_file(tmp_path / str(num_sinks))[1]
        assert metadata["version"] == version
        assert ("num_sink_tokens" in metadata) == bool(num_sinks)


def test_a_state_with_other_sinks_is_refused_with_both_numbers(model, tmp_path):
    plain = tiny_model()  # the same slots, of a window alone
    for saved, opened in ((model, plain), (plain, model)):
        saved.allocate_state().save(tmp_path / "s", fingerprint(saved, saved.config))
        sinks = saved.config.text_config.num_sink_tokens, opened.config.text_config.num_sink_tokens
        with pytest.raises(StateError, match=f"{sinks[0]} sink tokens, and this model's have {sinks[1]}"):
            config = opened.config.text_config
            StreamState.load(tmp_path / "s", config, fingerprint(opened, opened.config))
    with pytest.raises(StateError, match="keep 4 sink tokens, this model's keep 0"):
        plain.allocate_state().copy_(model.allocate_state())


def test_a_folder_remembers_its_sinks_and_without_any_has_no_such_field(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert InfiniteVLConfig.from_pretrained(tmp_path).text_config.num_sink_tokens == SINKS
    assert "num_sink_tokens" not in tiny_config().to_dict()
    back = InfiniteVLForConditionalGeneration.from_pretrained(tmp_path, num_sink_tokens=0)
    assert back.config.text_config.num_sink_tokens == 0


@pytest.mark.parametrize("wrong", [-1, 1.5, "4", None, True])
def test_a_number_of_sinks_that_is_none_is_refused(wrong):
    with pytest.raises(CheckpointError, match="num_sink_tokens is"):
        tiny_config(num_sink_tokens=wrong)


def test_a_stream_of_the_published_model_is_80_megabytes_with_256_sinks_and_a_window_of_2048():
    published = InfiniteVLConfig.from_pretrained(
        DATA / "published_4b", num_sink_tokens=256, sliding_window=2048
    ).text_config
    state = StreamState.allocate(published, dtype=torch.bfloat16, device="meta")
    windows = sum(t.nbytes for name, t in state.tensors().items() if name.endswith(("keys", "values")))
    assert (round(state.num_bytes / 1e6), round(windows / 1e6)) == (79, 21)
    assert published.num_window_slots == 2304
    assert InfiniteVLTextConfig().num_sink_tokens == 0
