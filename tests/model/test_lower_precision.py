"""Products in few bits: nearly the same answers in less memory; what would need whole weights is refused."""

import copy

import pytest
import torch
from torch import nn

from infinitevl.bench.sizes import TINY, random_model
from infinitevl.config import InfiniteVLConfig
from infinitevl.engine.loading import load
from infinitevl.engine.session import StreamSession
from infinitevl.errors import InputError
from infinitevl.model.fused import fusable, fuse_, fuse_onto_, quantization_of
from infinitevl.model.weights import fingerprint
from infinitevl.ops.linear.quantized import KINDS, Quantized
from infinitevl.ops.table import TORCH
from tests.support import random_frame, relative_error, tiny_model, tiny_processor

# Of logits. Measured on random text: 0.028, 0.094 and 0.35 for the built-in model; random weights are worse.
BUILTIN_BOUNDS = {"int8": 0.04, "fp8": 0.13, "int4": 0.45}
TINY_BOUNDS = {"int8": 0.1, "fp8": 0.4, "int4": 0.9}
BYTES = {"int8": 1, "fp8": 1, "int4": 0.5}
WIDE = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_linear_heads": 2,
    "num_linear_key_value_heads": 2,
    "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 256},
}
IDS = torch.randint(0, 400, (1, 60), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def read(model):
    return model(input_ids=IDS, use_cache=False).logits


def lowered(kind):
    model = tiny_model()
    fuse_(model, TORCH, kind)
    return model


def held_bytes(model):
    """Bytes of all memory that parameters and layouts hold, each counted once."""
    tensors = [*model.parameters()]
    for layer in fusable(model):
        for weight in (layer.layout.weights if layer.layout else {}).values():
            tensors += [weight.data, weight.scale] if isinstance(weight, Quantized) else [weight]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None
    }
    return sum(storages.values())


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_nearly_the_same(kind):
    error = relative_error(read(lowered(kind)), read(tiny_model()))
    assert 0.01 < error < TINY_BOUNDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_builtin_model_reads_nearly_the_same(kind):
    ids = torch.randint(10, 1000, (1, 200), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole, few = (
            load(device="cpu", quantization=p)[0](ids, use_cache=False).logits for p in (None, kind)
        )
    assert relative_error(few, whole) < BUILTIN_BOUNDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_it_watches_and_answers(kind):
    session = StreamSession(lowered(kind), tiny_processor())
    for index in range(3):
        session.observe(random_frame(index), at=index)
    assert session.ask("what is on the sign?", max_new_tokens=5)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_falls_to_the_bits(kind):
    model = random_model(InfiniteVLConfig(**WIDE), "cpu", torch.bfloat16)
    layers = model.model.language_model.layers
    large = sum(
        p.nbytes for layer in layers for name, p in layer.named_parameters() if "_proj.weight" in name
    )
    before = held_bytes(model)
    fuse_(model, TORCH, kind)
    saved = large * (1 - BYTES[kind] / 2)
    assert before - held_bytes(model) > 0.95 * saved


def test_it_is_off_by_default():
    model = tiny_model()
    fuse_(model, TORCH)
    StreamSession(model, tiny_processor())
    assert (
        quantization_of(model) is None
        and load(device="cpu")[0].model.language_model.layers[0].mlp.layout is None
    )


def test_what_is_not_a_large_product_of_the_decoder_stays():
    model, whole = lowered("int4"), tiny_model()
    theirs = dict(whole.named_parameters())
    kept = {name for name, p in model.named_parameters() if torch.equal(p, theirs[name])}
    gone = {name for name in theirs if "language_model.layers" in name and name.endswith("_proj.weight")}
    assert kept == theirs.keys() - gone


def test_in_fp8_the_vision_layers_behind_the_first_three_are_held_too():
    vision = {**TINY["vision_config"], "depth": 5}
    model = random_model(InfiniteVLConfig(**{**TINY, "vision_config": vision}), "cpu", torch.float32)
    before = {name: p.clone() for name, p in model.named_parameters()}
    patches = torch.randn(64, model.config.vision_config.patch_dim)
    with torch.no_grad():
        whole = model.model.visual(patches, [(1, 8, 8)])
        fuse_(model, TORCH, "fp8")
        few = model.model.visual(patches, [(1, 8, 8)])
    gone = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    vision_gone = {name for name in gone if "visual" in name}
    names = ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert vision_gone == {f"model.visual.blocks.{n}.{name}.weight" for n in (3, 4) for name in names}
    assert 0.001 < relative_error(few, whole) < 0.1


def test_a_session_lowers_its_model_and_another_goes_on_with_it():
    model = tiny_model()
    session = StreamSession(model, tiny_processor(), quantization="int8")
    session.observe(random_frame(0))
    weights = model.model.language_model.layers[0].mlp.layout["down"]
    assert session.fork().ask("and now?", max_new_tokens=3) == session.ask("and now?", max_new_tokens=3)
    assert StreamSession(model, tiny_processor()).model is model
    assert (
        model.model.language_model.layers[0].mlp.layout["down"] is weights
        and quantization_of(model) == "int8"
    )


def test_a_saved_stream_goes_on_in_another_precision(tmp_path):
    whole = StreamSession(tiny_model(), tiny_processor())
    whole.observe(random_frame(0))
    whole.save(tmp_path / "stream")
    model = lowered("int8")
    assert fingerprint(model, model.config) == fingerprint(whole.model, whole.model.config)
    assert StreamSession.load(tmp_path / "stream", model, tiny_processor()).stats().frames == 1


def test_moving_while_lowering_gives_the_same():
    model = tiny_model()
    fuse_onto_(model, torch.device("cpu"), "int4")
    assert torch.equal(read(model), read(lowered("int4")))


REFUSED = {
    "saved": lambda model, path: model.save_pretrained(path),
    "read out": lambda model, path: model.state_dict(),
    "filled": lambda model, path: model.load_state_dict(tiny_model().state_dict()),
    "trained": lambda model, path: model(input_ids=IDS, use_cache=False),
    "moved": lambda model, path: model.to("cpu"),
    "widened": lambda model, path: model.double(),
    "copied": lambda model, path: copy.deepcopy(model),
    "adapted": lambda model, path: setattr(
        model.model.language_model.layers[0].mlp, "up_proj", nn.Linear(32, 64, bias=False)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_whole_weights_is_refused_and_changes_nothing(name, tmp_path):
    model = lowered("int8")
    before = read(model)
    with pytest.raises(InputError, match=r"int8.*Load the model again"):
        REFUSED[name](model, tmp_path)
    assert torch.equal(read(model), before)


def test_another_precision_later_is_refused():
    with pytest.raises(InputError, match="already runs in int8"):
        fuse_(lowered("int8"), TORCH, "int4")
    model = tiny_model()
    fuse_(model, TORCH)
    with pytest.raises(InputError, match="already runs in full precision"):
        StreamSession(model, tiny_processor(), quantization="int4")


def test_a_precision_that_does_not_exist_is_refused_before_anything_is_loaded():
    for start in (lambda: load("no/model", quantization="int3"), lambda: fuse_(tiny_model(), TORCH, "int3")):
        with pytest.raises(InputError, match="int8, int4, fp8"):
            start()
