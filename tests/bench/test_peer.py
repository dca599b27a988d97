"""The Transformer that we compare with is a right one, however it is run."""

import pytest
import torch

from infinitevl.bench.peer import EagerPeer, GraphedPeer, build_peer, frame_inputs, prefill
from infinitevl.errors import InputError
from tests.support import relative_error, scale_weights_

CONTEXT = 23


@pytest.fixture(scope="module")
def peer():
    model = build_peer("tiny", "cpu", torch.float32)
    scale_weights_(model)
    return model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 256, (1, CONTEXT + 1), generator=torch.Generator().manual_seed(1))


def after_reading(peer, ids):
    """A growing cache that holds the tokens `ids`."""
    eager = EagerPeer(peer, 0)
    eager.read(ids)
    eager.context = ids.shape[1]
    return eager


def captured_after_reading(peer, ids):
    """A cache of fixed size with the same keys and values in it, and room for one more."""
    graphed, eager = GraphedPeer(peer, ids.shape[1]), after_reading(peer, ids)
    for mine, theirs in zip(graphed.cache.layers, eager.cache.layers, strict=True):
        mine.keys[:, :, :-1], mine.values[:, :, :-1] = theirs.keys, theirs.values
    return graphed


def test_a_growing_and_a_fixed_cache_give_the_logits_of_one_plain_forward(peer, ids):
    wanted = peer(input_ids=ids).logits[:, -1:]
    eager, graphed = after_reading(peer, ids[:, :-1]), captured_after_reading(peer, ids[:, :-1])
    graphed.token.copy_(ids[:, -1:])
    assert relative_error(eager.read(ids[:, -1:]), wanted) < 1e-5
    assert relative_error(graphed.step(), wanted) < 1e-5
    assert relative_error(prefill(peer, ids), wanted) < 1e-5


def test_every_layout_of_attention_gives_the_same(peer, ids):
    graphed = captured_after_reading(peer, ids[:, :-1])
    layouts = ("sdpa", "sdpa_packed_query_heads")
    logits = []
    for layout in layouts:
        object.__setattr__(graphed.attention, "layout", layout)
        graphed.token.zero_()
        logits.append(graphed.step().clone())
    assert logits[0].abs().max() > 0
    assert relative_error(logits[1], logits[0]) < 1e-5
    assert peer.model.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", [EagerPeer, GraphedPeer])
def test_a_token_attends_to_all_keys_before_it_and_to_its_own(peer, kind):
    run = kind(peer, CONTEXT)
    keys = run.cache.layers[0].keys
    assert run.step().isfinite().all()
    assert run.cache.layers[0].keys.shape[2] == CONTEXT + 1
    for place in (0, CONTEXT - 1):
        fresh = kind(peer, CONTEXT)
        before = fresh.step().clone()
        changed = kind(peer, CONTEXT)
        changed.cache.layers[0].values[:, :, place] += 30
        assert relative_error(changed.step(), before) > 1e-4, f"key {place} is not attended to"
    assert keys is not None


@pytest.mark.parametrize("kind", [EagerPeer, GraphedPeer])
def test_a_repeated_step_finds_the_same_context(peer, kind):
    run = kind(peer, CONTEXT)
    for _ in range(3):
        if kind is EagerPeer:
            run.rewind()
        run.step()
    assert {layer.keys.shape[2] for layer in run.cache.layers} == {CONTEXT + 1}
    again = kind(peer, CONTEXT)
    assert torch.equal(again.cache.layers[1].keys[:, :, :CONTEXT], run.cache.layers[1].keys[:, :, :CONTEXT])


def test_a_frame_is_seen_and_appended(peer):
    inputs = frame_inputs(peer, (56, 56))
    ids = inputs.pop("ids")
    run = EagerPeer(peer, CONTEXT)
    seen = run.read(ids, **inputs)
    assert run.cache.get_seq_length() == CONTEXT + 4
    run.rewind()
    assert run.cache.get_seq_length() == CONTEXT
    inputs["pixel_values"] = inputs["pixel_values"] + 1
    assert relative_error(run.read(ids, **inputs), seen) > 1e-3


def test_the_published_shape_is_that_of_the_3b_model():
    with torch.device("meta"):
        model = build_peer("4b", "meta", torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == 3_754_622_976
    text = model.config.text_config
    assert (text.num_hidden_layers, text.num_key_value_heads, text.vocab_size) == (36, 2, 151936)
    assert text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_a_size_without_a_peer_is_told():
    with pytest.raises(InputError, match="--no-peer"):
        build_peer("builtin", "cpu", torch.float32)
