"""State files whose checksum is right and whose contents are not: every field is checked before use."""

import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from infinitevl import StreamSession
from infinitevl.errors import InfiniteVLError, StateError
from infinitevl.model.weights import fingerprint
from infinitevl.state import StreamState
from infinitevl.state_file import checksum
from tests.support import tiny_model, tiny_processor

MARK = "mark"


def forge(path, tensors, words):
    """Write tensors and words with the checksum that belongs to them."""
    words = {key: text for key, text in words.items() if key != "checksum"}
    save_file(tensors, path, metadata={**words, "checksum": checksum(tensors, words)})


@pytest.fixture(scope="module")
def config():
    return tiny_model().config.text_config


@pytest.fixture
def saved(config, tmp_path):
    state = StreamState.allocate(config, frame_size=(28, 56))
    state.save(tmp_path / "s", MARK)
    return tmp_path / "s"


@pytest.fixture
def words(saved):
    with safe_open(saved, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("length", lambda t: None, "length has nothing"),
        ("length", lambda t: t.int(), "length is torch.int32"),
        ("length", lambda t: t.double(), "length is torch.float64"),
        ("length", lambda t: t - 1, "values that no stream has"),
        ("length", lambda t: t[0], "length has shape"),
        ("length", lambda t: t[:0], "length has shape"),
        ("length", lambda t: t.repeat(2), "has shape"),
        ("span.last_time", lambda t: t + 2**63 - 1, "values that no stream has"),
        ("span.is_open", lambda t: t.long(), "is_open is torch.int64"),
        ("span.is_open", lambda t: torch.tensor([2], dtype=torch.uint8).view(torch.bool), "values"),
        ("span.waiting", lambda t: t.float(), "waiting is torch.float32"),
        ("span.waiting", lambda t: t[0], "waiting has shape"),
        ("span.waiting", lambda t: torch.zeros(1, 3, 0, 2**40, dtype=torch.uint8), None),
        ("layers.0.keys", lambda t: t[..., :1], "keys has shape"),
        ("layers.0.keys", lambda t: t.to(torch.float8_e4m3fn), "float8"),
        ("layers.0.keys", lambda t: t.long(), "keys is torch.int64"),
        ("layers.0.keys", lambda t: t * torch.nan, "values that no stream has"),
    ],
)
def test_a_forged_tensor_is_refused_by_name(config, saved, words, name, change, message):
    tensors = load_file(saved)
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed.contiguous()
    forge(saved, tensors, words)
    if message is None:  # sizes that make no sense together hold no bytes, and no frame
        assert StreamState.load(saved, config, MARK).num_bytes > 0
    else:
        with pytest.raises(StateError, match=message):
            StreamState.load(saved, config, MARK)


def test_a_recurrent_state_in_few_bits_is_refused(config, saved, words):
    tensors = load_file(saved)
    wide = [name for name in tensors if name.startswith("layers.1.") and tensors[name].dim() == 4]
    tensors[wide[0]] = tensors[wide[0]].bfloat16()
    forge(saved, tensors, words)
    with pytest.raises(StateError, match="bfloat16"):
        StreamState.load(saved, config, MARK)


def test_a_frame_that_waits_without_pixels_is_refused(config, tmp_path):
    state = StreamState.allocate(config)
    state.span.has_waiting.fill_(True)
    state.save(tmp_path / "s", MARK)
    with pytest.raises(StateError, match="no pixels"):
        StreamState.load(tmp_path / "s", config, MARK)


def test_more_tokens_than_full_attention_has_room_for_are_refused(tmp_path):
    config = tiny_model(layer_types=["full_attention"] * 4).config.text_config
    state = StreamState.allocate(config, max_length=8)
    state.length.fill_(9)
    state.save(tmp_path / "s", MARK)
    with pytest.raises(StateError, match="more than the 8 tokens"):
        StreamState.load(tmp_path / "s", config, MARK)


def test_three_hundred_forged_files_are_states_or_state_errors(config, saved, words):
    rng, tensors = random.Random(0), load_file(saved)
    refused = 0
    for _ in range(300):
        changed = dict(tensors)
        for name in rng.sample(sorted(tensors), rng.choice((1, 1, 2, 5))):
            _spoil(changed, name, rng)
        forge(saved, changed, words)
        try:
            StreamState.load(saved, config, MARK).tensors()
        except StateError:
            refused += 1
    assert 200 < refused < 300  # some changes, such as other numbers in a window, make another good state


def _spoil(tensors, name, rng):
    tensor = tensors.pop(name)
    ways = (
        lambda t: None,
        lambda t: t.to(rng.choice([torch.int8, torch.float16, torch.bool, torch.complex64, torch.float64])),
        lambda t: t[None],
        lambda t: t.flatten()[: rng.randrange(3)],
        lambda t: t[:0],
        lambda t: torch.full_like(t, rng.choice([-1, 1, 2**31, 2**62])) if t.dtype == torch.int64 else t + 1,
        lambda t: torch.zeros(rng.choice([(0,), (), (1, 0, 2**40), (1, 3, 4, 4)]), dtype=t.dtype),
    )
    spoilt = rng.choice(ways)(tensor)
    if spoilt is not None:
        tensors[name] = spoilt.contiguous()
    elif rng.random() < 0.5:
        tensors["x" * rng.randrange(1, 50)] = tensor


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "[" * 100_000,
        "null",
        "[]",
        "{}",
        '{"mode": 1, "frame_size": null, "keep_turns": false, "system": null}',
        '{"mode": "image", "frame_size": "28", "keep_turns": false, "system": null}',
        '{"mode": "image", "frame_size": [28], "keep_turns": false, "system": null}',
        '{"mode": "image", "frame_size": [28, NaN], "keep_turns": false, "system": null}',
        '{"mode": "image", "frame_size": null, "keep_turns": 0, "system": null}',
        '{"mode": "image", "frame_size": null, "keep_turns": false, "system": ["x"]}',
        '{"mode": "painting", "frame_size": null, "keep_turns": false, "system": null}',
    ],
)
def test_forged_settings_of_a_stream_are_refused(settings, tmp_path):
    model = tiny_model()
    state = model.allocate_state()
    state.save(tmp_path / "s", fingerprint(model, model.config), settings=settings)
    with pytest.raises(InfiniteVLError):
        StreamSession.load(tmp_path / "s", model, tiny_processor())


def test_settings_as_a_session_writes_them_are_read(tmp_path):
    model = tiny_model()
    session = StreamSession(model, tiny_processor(), mode="video", frame_size=(28, 56), keep_turns=True)
    session.save(tmp_path / "s")
    again = StreamSession.load(tmp_path / "s", model, tiny_processor())
    assert json.dumps([again.mode, again.frame_size, again.keep_turns]) == '["video", [28, 56], true]'


def test_a_state_in_another_dtype_of_a_float16_model_says_what_to_do(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.view(-1)[0] = 1e-7  # less than float16 has
    model.allocate_state().save(tmp_path / "s", fingerprint(model, model.config))
    mark = fingerprint(model.half(), model.config)
    with pytest.raises(StateError, match="float16 rounds weights"):
        StreamState.load(tmp_path / "s", model.config.text_config, mark, dtype=torch.float16)


@pytest.mark.parametrize("path", ["", ".", "x" * 300, "a\0b"])
def test_paths_that_hold_no_state_are_told(path, config):
    with pytest.raises(StateError):
        StreamState.load(path, config, MARK)
