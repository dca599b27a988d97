"""The state: constant, copied, saved and loaded exactly."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from infinitevl import StreamSession
from infinitevl.errors import InfiniteVLError, StateError
from infinitevl.model.hf_cache import StateCache
from infinitevl.model.weights import fingerprint
from infinitevl.state import StreamState
from infinitevl.state_file import checksum, read_file, saved_settings
from tests.support import tiny_model, tiny_processor

MARK = "mark"


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def state(model):
    state = model.allocate_state(2, frame_size=(28, 56))
    with torch.no_grad():
        model(input_ids=torch.randint(0, 400, (2, 30)), past_key_values=state)
    state.span.waiting.random_(0, 255)
    return state


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))


def test_sizes_of_the_published_model_are_those_of_the_paper():
    from infinitevl.config import InfiniteVLConfig
    from tests.support import DATA

    config = InfiniteVLConfig.from_pretrained(DATA / "published_4b").text_config
    state = StreamState.allocate(config, dtype=torch.bfloat16, device="meta")
    assert round(state.num_bytes / 1e6) == 133
    recurrent_states = [t for name, t in state.tensors().items() if name.endswith("recurrent_state")]
    assert len(recurrent_states) == 27 and recurrent_states[0].shape == (1, 16, 128, 256)
    assert all(recurrent_state.dtype == torch.float32 for recurrent_state in recurrent_states)


def test_a_fork_is_equal_and_independent(model, state):
    fork = state.fork()
    assert same(fork, state)
    with torch.no_grad():
        model(input_ids=torch.randint(0, 400, (2, 5)), past_key_values=fork)
    assert not same(fork, state)
    assert int(state.length[0]) == 30 and int(fork.length[0]) == 35


def test_a_fork_shares_no_memory(state):
    pairs = zip(state.tensors().values(), state.fork().tensors().values(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)


def test_copying_takes_over_everything_in_place(model, state):
    other = model.allocate_state(2, frame_size=(28, 56))
    addresses = [tensor.data_ptr() for tensor in other.tensors().values()]
    assert same(other.copy_(state), state)
    assert addresses == [tensor.data_ptr() for tensor in other.tensors().values()]


def test_reset_equals_a_new_state(model, state):
    assert same(state.reset_(), model.allocate_state(2, frame_size=(28, 56)))


def test_a_state_comes_back_bit_for_bit(model, state, tmp_path):
    state.save(tmp_path / "s", MARK, settings="{}")
    loaded = StreamState.load(tmp_path / "s", model.config.text_config, MARK)
    assert same(loaded, state) and saved_settings(tmp_path / "s") == "{}"


def test_another_dtype_rounds_windows_and_tails_and_keeps_memories(model, state, tmp_path):
    state.save(tmp_path / "s", MARK)
    loaded = StreamState.load(tmp_path / "s", model.config.text_config, MARK, dtype=torch.bfloat16)
    for name, tensor in loaded.tensors().items():
        wanted = state.tensors()[name]
        rounded = name.endswith(("keys", "values", "conv_state"))
        assert tensor.dtype == (torch.bfloat16 if rounded else wanted.dtype), name
        assert torch.equal(tensor, wanted.to(tensor.dtype)), name


def test_a_state_continues_in_a_new_process(model, tmp_path):
    ids = torch.randint(0, 400, (1, 60), generator=torch.Generator().manual_seed(0))
    state = model.allocate_state()
    with torch.no_grad():
        model(input_ids=ids[:, :40], past_key_values=state)
        state.save(tmp_path / "s", fingerprint(model, model.config))
        wanted = model(input_ids=ids[:, 40:], past_key_values=state).logits
    save_file({"ids": ids, "wanted": wanted}, tmp_path / "io")
    code = f"""
import torch
from safetensors.torch import load_file
from infinitevl.model.hf_cache import StateCache
from infinitevl.model.weights import fingerprint
from infinitevl.state import StreamState
from tests.support import tiny_model, tiny_processor
torch.set_num_threads(1)
model, io = tiny_model(), load_file(r"{tmp_path / "io"}")
state = StreamState.load(r"{tmp_path / "s"}", model.config.text_config, fingerprint(model, model.config))
with torch.no_grad():
    given = model(input_ids=io["ids"][:, 40:], past_key_values=state).logits
assert torch.equal(given, io["wanted"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_state_of_another_model_is_refused(model, state, tmp_path):
    state.save(tmp_path / "s", fingerprint(model, model.config))
    other = tiny_model(seed=1)
    with pytest.raises(StateError, match="another model"):
        StreamState.load(tmp_path / "s", other.config.text_config, fingerprint(other, other.config))


def test_the_fingerprint_does_not_depend_on_the_dtype_and_does_on_every_weight(model):
    model = model.to(torch.bfloat16)
    mark = fingerprint(model, model.config)
    assert fingerprint(model.float(), model.config) == mark
    for name, weight in model.named_parameters():
        if "lm_head" in name:
            continue
        with torch.no_grad():
            weight.view(-1)[-1] += 1
            assert fingerprint(model, model.config) != mark, name
            weight.view(-1)[-1] -= 1


@pytest.mark.parametrize("where", [10, 3000, -5])
def test_a_damaged_file_is_refused(model, state, tmp_path, where):
    path = tmp_path / "s"
    state.save(path, MARK)
    data = bytearray(path.read_bytes())
    data[where] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(StateError):
        StreamState.load(path, model.config.text_config, MARK)


@pytest.mark.parametrize("key", ["settings", "fingerprint", "version", "format", "checksum"])
def test_damaged_words_beside_the_tensors_are_refused(model, state, tmp_path, key):
    path = tmp_path / "s"
    state.save(path, MARK, settings="settings")
    with safe_open(path, framework="pt") as file:
        words = file.metadata()
    save_file(load_file(path), path, metadata={**words, key: words[key] + "x"})
    with pytest.raises(StateError):
        StreamState.load(path, model.config.text_config, MARK)


def test_a_tensor_that_is_read_as_another_dtype_is_damage(model, state, tmp_path):
    path = tmp_path / "s"
    state.save(path, MARK)
    path.write_bytes(path.read_bytes().replace(b'"dtype":"I64"', b'"dtype":"F64"'))
    with pytest.raises(StateError, match="damaged"):
        StreamState.load(path, model.config.text_config, MARK)


def test_truncated_missing_and_foreign_files_are_refused(model, state, tmp_path):
    config = model.config.text_config
    path = tmp_path / "s"
    state.save(path, MARK)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StateError, match="not a readable state"):
        StreamState.load(path, config, MARK)
    with pytest.raises(StateError, match="no state at"):
        StreamState.load(tmp_path / "absent", config, MARK)
    save_file({"x": torch.zeros(1)}, tmp_path / "x")
    with pytest.raises(StateError, match="not a state of InfiniteVL"):
        StreamState.load(tmp_path / "x", config, MARK)


def test_another_format_version_is_refused(model, state, tmp_path):
    path = tmp_path / "s"
    state.save(path, MARK)
    save_file(load_file(path), path, metadata={"format": "infinitevl-state", "version": "99"})
    with pytest.raises(StateError, match="format 99"):
        StreamState.load(path, model.config.text_config, MARK)


def test_a_state_of_format_1_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "s"
    model = tiny_model()
    StreamSession(model, tiny_processor()).save(path)
    names = {"recurrent_state": "memory", "conv_state": "tail"}
    tensors = {
        ".".join(names.get(part, part) for part in name.split(".")): tensor
        for name, tensor in load_file(path).items()
    }
    metadata = {**read_file(path)[1], "version": "1"}
    save_file(tensors, path, metadata={**metadata, "checksum": checksum(tensors, metadata)})
    with pytest.raises(
        StateError, match=r"state format 1, .* reads formats 2 and 3.* watch the stream again"
    ):
        StreamSession.load(path, model, tiny_processor())


def test_a_failed_save_keeps_the_older_file_and_leaves_nothing_behind(state, tmp_path, monkeypatch):
    path = tmp_path / "s"
    state.save(path, MARK)
    before = path.read_bytes()

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infinitevl.state.save_file", no_space)
    with pytest.raises(InfiniteVLError, match="No space left"):
        state.save(path, MARK)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["s"]


def test_states_of_other_shapes_are_not_copied(model, state):
    with pytest.raises(StateError, match="shape"):
        state.copy_(model.allocate_state(3, frame_size=(28, 56)))


def test_a_state_with_more_or_fewer_layers_is_not_copied(state):
    shorter = tiny_model(num_hidden_layers=3).allocate_state(2, frame_size=(28, 56))
    for here, there in ((state, shorter), (shorter, state)):
        before = here.fork()
        with pytest.raises(StateError, match=r"layers\.3\.recurrent_state"):
            here.copy_(there)
        assert same(here, before)


def test_a_row_is_copied_and_forgotten_alone(state):
    wider = state.select(torch.tensor([0, 1, 0]))
    assert not same(wider.row(1), wider.row(2))
    wider.copy_row_(2, 1)
    assert same(wider.row(2), state.row(1)) and same(wider.row(0), state.row(0))
    wider.reset_row_(0)
    assert not any(tensor.any() for tensor in wider.row(0).tensors().values())
    assert same(wider.row(1), state.row(1))


def test_a_row_is_a_view(state):
    state.row(1).length.fill_(77)
    assert state.length.tolist() == [30, 77]


def test_all_of_a_stream_lies_in_one_buffer(state):
    (buffer,) = state.buffers
    start, end = buffer.data_ptr(), buffer.data_ptr() + buffer.nbytes
    assert all(start <= t.data_ptr() < end for t in state.tensors().values() if t.numel())
    assert buffer.nbytes < state.num_bytes + 2 * 256 * len(state.tensors())


def test_full_attention_needs_a_length():
    with pytest.raises(StateError, match="max_length"):
        tiny_model(layer_types=["full_attention"] * 4).allocate_state()


def test_the_room_of_full_attention_is_for_the_tokens_of_each_row():
    state = tiny_model(layer_types=["full_attention"] * 4).allocate_state(2, max_length=10)
    state.length.copy_(torch.tensor([9, 2]))
    state.check_room(1)
    state.check_room(torch.tensor([1, 8]))
    for num_new in (2, torch.tensor([1, 9])):
        with pytest.raises(StateError, match=r"room for 10 tokens, 9 are stored, .* 11"):
            state.check_room(num_new)


def test_padding_takes_no_room():
    model = tiny_model(layer_types=["full_attention", "linear_attention"] * 2)
    state = model.allocate_state(2, max_length=10)
    with torch.no_grad():
        for mask in ([[1] * 8, [1] * 3 + [0] * 5], [[1, 1, 0, 0, 0], [1] * 5]):
            mask = torch.tensor(mask)
            model(input_ids=torch.zeros_like(mask), attention_mask=mask, past_key_values=state)
    assert state.length.tolist() == [10, 8]


def test_tokens_are_counted_beside_the_state_wherever_their_positions_are():
    state = StreamState.allocate(tiny_model().config.text_config, device="meta")
    state.advance_(torch.tensor([3]), torch.zeros(3, 1, 3, dtype=torch.int64))
    state.advance_(1, torch.zeros(3, 1, 1, dtype=torch.int64))
    assert state.length.device.type == state.next_position.device.type == "meta"


def test_each_layer_keeps_its_state_on_its_own_device():
    config = tiny_model().config.text_config
    state = StreamState.allocate(config, device=["cpu", "meta", "cpu", "meta"])
    kinds = [
        layer.recurrent_state.device.type if hasattr(layer, "recurrent_state") else layer.keys.device.type
        for layer in state.layers
    ]
    assert kinds == ["cpu", "meta", "cpu", "meta"]
    with pytest.raises(StateError, match="2 devices"):
        StreamState.allocate(config, device=["cpu", "cpu"])


def through_pickle(state):
    return pickle.loads(pickle.dumps(state))


def through_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [through_pickle, through_torch, copy.deepcopy])
def test_a_copy_is_whole_and_independent(model, state, copied):
    before = state.fork()
    twin = copied(state)
    assert same(twin, state)
    with torch.no_grad():
        model(input_ids=torch.randint(0, 400, (2, 5)), past_key_values=twin)
    assert same(state, before) and int(twin.length[0]) == 35
    assert same(twin.fork(), twin) and int(twin.select(torch.tensor([1])).length) == 35
    assert int(twin.row(0).length) == 35
    assert not any(tensor.any() for tensor in twin.reset_().tensors().values())


@pytest.mark.parametrize("copied", [through_pickle, through_torch, copy.deepcopy])
def test_a_copied_row_takes_no_other_stream_along(state, copied):
    row = copied(state.row(1))
    assert same(row, state.row(1))
    assert [b.untyped_storage().nbytes() for b in row.buffers] == [b[:1].nbytes for b in state.buffers]


def test_a_cache_of_transformers_is_copied_with_its_state(model):
    cache = StateCache()
    with torch.no_grad():
        model(input_ids=torch.randint(0, 400, (1, 9)), past_key_values=cache)
    twin = copy.deepcopy(cache)
    assert same(twin.state, cache.state) and twin.num_seen == 9
    twin.state.reset_()
    assert int(cache.state.length) == 9


def test_a_state_goes_through_a_process(model, state):
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        twin = pool.apply(_reset_first_row, (state,))
    assert int(state.length[0]) == 30
    assert same(twin.row(1), state.row(1)) and not twin.row(0).length.any()


def _reset_first_row(state):
    state = state.fork()
    state.reset_row_(0)
    return state
