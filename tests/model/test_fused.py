"""Weights laid out for speed: the same answers, the same parameters, nothing held twice."""

import copy

import pytest
import torch
from torch import nn

from infinitevl.errors import InputError
from infinitevl.model import fused as fused_module
from infinitevl.model.fused import fuse_, unfused
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.layers import GatedMLP
from infinitevl.ops.table import TORCH
from tests.support import relative_error, tiny_model

GRID = torch.tensor([[1, 4, 8]])


def read(model, state=None, rows=None):
    torch.manual_seed(1)
    ids = torch.randint(0, 400, (2, 30))
    embeds = model.model.embed(ids)
    positions = torch.arange(30).expand(3, 2, -1)
    with torch.no_grad():
        return model.model.language_model(embeds, positions, state, rows=rows)


def see(model):
    torch.manual_seed(2)
    with torch.no_grad():
        return model.model.visual(torch.randn(32, 1176), GRID)


def memory_of(model):
    return sum(
        {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values()
    )


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def fused():
    model = tiny_model()
    fuse_(model, TORCH)
    return model


def test_a_laid_out_model_reads_and_sees_the_same(model, fused):
    assert relative_error(read(fused), read(model)) < 1e-5
    assert relative_error(see(fused), see(model)) < 1e-5


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_weights_that_lie_in_a_layout_stay_there(quantization, monkeypatch):
    """The norm inside of a mixer, when the mixer is laid out and what is left of the model comes later."""
    monkeypatch.setattr(fused_module, "_shares_block", lambda parameter: True)
    model = tiny_model()
    for layer in model.model.language_model.layers:
        layer.self_attn.fuse_(TORCH, quantization)
    before = [layer.self_attn.layout.places for layer in model.model.language_model.layers]
    fuse_(model, TORCH)
    assert [layer.self_attn.layout.places for layer in model.model.language_model.layers] == before


def test_weights_come_home_when_a_layout_fails(model, monkeypatch):
    """They were lent to the host meanwhile."""
    monkeypatch.setattr(fused_module, "_shares_block", lambda parameter: True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    monkeypatch.setattr(GatedMLP, "_lay_out", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fuse_(model, TORCH)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert sum(weight.data_ptr() != places[name] for name, weight in model.named_parameters()) > 10
    monkeypatch.undo()
    fuse_(model, TORCH)
    assert relative_error(read(model), read(tiny_model())) < 1e-5


def test_the_layout_is_what_runs(model, fused):
    for layer in fused.model.language_model.layers:
        layer.mlp.layout["gate_up"].zero_()
    assert relative_error(read(fused), read(model)) > 0.1


def test_parameters_keep_names_values_and_memory(model, fused):
    theirs = dict(model.named_parameters())
    for name, parameter in fused.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    filling = 1.3  # a width of 52 is filled up to 64
    assert memory_of(fused) < filling * memory_of(model)


def test_a_laid_out_model_is_saved_as_any_other(model, fused, tmp_path):
    fused.save_pretrained(tmp_path)
    loaded = InfiniteVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(read(loaded), read(model))
    assert fused.model.language_model.layers[0].mlp.layout is not None


def test_weights_changed_in_place_count(model, fused):
    with torch.no_grad():
        for one in (model, fused):
            one.model.language_model.layers[1].self_attn.v_proj.weight.mul_(3)
    assert relative_error(read(fused), read(model)) < 1e-5


def test_gradients_reach_every_projection_of_a_laid_out_model(fused):
    out = fused(input_ids=torch.randint(0, 400, (1, 9)), use_cache=False).logits
    out.square().mean().backward()
    layers = fused.model.language_model.layers
    assert all(p.grad is not None and p.grad.any() for layer in layers for p in layer.mlp.parameters())


def test_a_projection_put_in_later_is_not_passed_over(fused):
    mixer = fused.model.language_model.layers[1].self_attn
    before = read(fused)
    mixer.v_proj = nn.Sequential(mixer.v_proj)
    assert mixer.layout is None and relative_error(read(fused), before) < 1e-5
    with pytest.raises(InputError, match="v_proj is a Sequential"):
        fuse_(fused, TORCH)


def test_moving_a_laid_out_model_keeps_its_answers(fused):
    before = read(fused)
    assert relative_error(read(fused.double()), before) < 1e-5


def test_a_deep_copy_is_independent(fused):
    twin, before = copy.deepcopy(fused), read(fused)
    with torch.no_grad():
        twin.model.language_model.layers[0].mlp.up_proj.weight.zero_()
    assert torch.equal(read(fused), before) and relative_error(read(twin), before) > 1e-3


def test_within_unfused_every_parameter_stands_alone(fused):
    with unfused(fused):
        pointers = [p.untyped_storage().data_ptr() for p in fused.parameters()]
        assert len(set(pointers)) == len(pointers)
    assert fused.model.language_model.layers[0].self_attn.layout is not None


@pytest.mark.parametrize("one_token", [False, True])
def test_rows_of_a_larger_state_read_like_a_state_of_their_own(model, one_token):
    whole, alone = model.allocate_state(5), model.allocate_state(2)
    rows = torch.tensor([3, 1])
    for state, where in ((whole, rows), (alone, None)):
        read(model, state, where)
    embeds, positions = model.model.embed(torch.tensor([[7], [8]])), torch.full((3, 2, 1), 30)
    with torch.no_grad():
        ours, theirs = (
            model.model.language_model(embeds, positions, state, one_token=one_token, rows=where)
            for state, where in ((whole, rows), (alone, None))
        )
    assert relative_error(ours, theirs) < 1e-6
    picked = whole.select(rows)
    for name, tensor in alone.tensors().items():
        assert torch.allclose(picked.tensors()[name], tensor, atol=1e-6), name
    assert not any(tensor.any() for row in (0, 2, 4) for tensor in whole.row(row).tensors().values())


def test_laying_out_again_and_saving_leave_weights_where_captured_graphs_read_them(fused, tmp_path):
    mlp = fused.model.language_model.layers[0].mlp
    weights, before = dict(mlp.layout.weights), read(fused)
    fuse_(fused, TORCH)
    fused.save_pretrained(tmp_path)
    assert all(mlp.layout[name] is weight for name, weight in weights.items())
    assert mlp.up_proj.weight.untyped_storage().data_ptr() == weights["gate_up"].untyped_storage().data_ptr()
    assert torch.equal(read(fused), before)


def test_parameters_that_were_replaced_are_laid_out_anew(model, fused):
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight.mul_(3)
    fused.load_state_dict(model.state_dict(), assign=True)
    fuse_(fused, TORCH)
    assert relative_error(read(fused), read(model)) < 1e-5
