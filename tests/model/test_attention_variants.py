"""The same weights with sinks and a window, with a window alone, and with all keys."""

import pytest
import torch

from infinitevl import ChatSession, InputError, StreamSession, load
from infinitevl.config import FULL, SLIDING, InfiniteVLConfig
from infinitevl.model.attention_variants import VARIANTS, apply_variant_
from tests.support import DATA, random_frame, relative_error, tiny_config, tiny_model, tiny_processor
from tests.training.teachers import write_qwen


def sizes(config):
    text = config.text_config
    return text.num_sink_tokens, text.sliding_window


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "m")
    tiny_processor().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_the_published_model_streams_with_the_papers_sizes():
    config = InfiniteVLConfig.from_pretrained(DATA / "published_4b")
    for name, wanted in (("sliding", (0, 8192)), ("streaming", (256, 2048)), ("full", (0, 128000))):
        apply_variant_(config, name)
        assert sizes(config) == wanted


@pytest.mark.parametrize(
    "kept, wanted", [(64, (16, 48)), (2303, (575, 1728)), (2304, (256, 2048)), (3, (0, 3)), (4, (1, 3))]
)
def test_smaller_layers_give_a_quarter_of_their_keys_to_sinks(kept, wanted):
    config = tiny_config(sliding_window=kept)
    apply_variant_(config, "streaming")
    assert sizes(config) == wanted
    apply_variant_(config, "streaming")  # a folder that has sinks keeps them
    assert sizes(config) == wanted
    apply_variant_(config, "sliding")
    assert sizes(config) == (0, min(kept, 2304))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_folder_remembers_its_variant_and_so_do_its_states(folder, tmp_path, name):
    model, processor = load(folder, device="cpu", attention=name)
    session = StreamSession(model, processor)
    for index in range(6):
        session.observe(random_frame(index), at=index)
    session.save(tmp_path / "s")
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again, processor = load(tmp_path / "again", device="cpu")
    assert sizes(again.config) == sizes(model.config)
    resumed = StreamSession.load(tmp_path / "s", again, processor)
    assert resumed.ask("what?", max_new_tokens=3) == session.ask("what?", max_new_tokens=3)


def test_all_variants_are_the_same_up_to_the_window_and_differ_after_it(folder):
    models = [load(folder, device="cpu", attention=name)[0] for name in (None, *VARIANTS)]
    ids = torch.randint(0, 400, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in models]
    for other in logits[1:]:
        assert relative_error(other[:, :12], logits[0][:, :12]) < 1e-5
    assert torch.equal(logits[2], logits[0])  # the folder's own is sliding
    assert not torch.allclose(logits[1][:, 20:], logits[0][:, 20:])
    assert not torch.allclose(logits[3][:, 20:], logits[0][:, 20:])


def test_a_transformer_streams_with_a_state_of_constant_size(tmp_path):
    write_qwen(tmp_path)
    model, processor = load(tmp_path, device="cpu", attention="streaming")
    assert set(model.config.text_config.layer_types) == {SLIDING}
    assert isinstance(ChatSession(model, processor).say("Hello", max_new_tokens=2), str)
    full, _ = load(tmp_path, device="cpu", attention="full")
    assert set(full.config.text_config.layer_types) == {FULL}


@pytest.mark.parametrize("wrong", ["sparse", "", 3, True, ["full"], "Streaming"])
def test_an_unknown_variant_is_refused_with_the_known_ones(wrong):
    with pytest.raises(InputError, match="give one of streaming, sliding, full"):
        load(None, attention=wrong)


def test_the_built_in_model_streams_in_a_state_as_large_as_before():
    plain, streaming = (load(None, device="cpu", attention=name)[0] for name in (None, "streaming"))
    assert sizes(streaming.config) == (16, 48)
    assert streaming.allocate_state().num_bytes == plain.allocate_state().num_bytes
