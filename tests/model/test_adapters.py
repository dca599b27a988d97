"""Adapters beside a model's weights: merged on loading as peft merges them, refused where they cannot be."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import infinitevl
from infinitevl.errors import CheckpointError
from infinitevl.model import opening
from infinitevl.model.adapters import CONFIG, FOLDER, WEIGHTS, merge_adapter_
from infinitevl.training.lora import add_adapters, merged, save_adapter
from tests.support import adapter_weights, tiny_model, tiny_processor


def _adapted(seed: int = 0):
    """A model with adapters that matter."""
    adapted = add_adapters(tiny_model(seed), rank=3, alpha=7)
    generator = torch.Generator().manual_seed(seed)
    for weight in adapter_weights(adapted):
        weight.data.normal_(0, 0.2, generator=generator)
    return adapted


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    _adapted().save_pretrained(tmp_path / FOLDER)
    return tmp_path


def test_a_folder_with_an_adapter_loads_as_peft_merges_it(folder):
    wanted = merged(_adapted()).state_dict()
    model, _ = infinitevl.load(folder, dtype=torch.float32, device="cpu")
    found, plain = model.state_dict(), tiny_model().state_dict()
    assert set(found) == set(wanted)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in found)
    changed = [name for name in found if not torch.equal(found[name], plain[name])]
    assert len(changed) == len(load_file(folder / FOLDER / WEIGHTS)) // 2 > 0


def test_the_sum_is_exact(folder):
    model = tiny_model().double()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    parts = load_file(folder / FOLDER / WEIGHTS)
    merge_adapter_(model, folder / FOLDER)
    name = "model.language_model.layers.1.self_attn.v_proj"
    down, up = (parts[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    wanted = before[f"{name}.weight"] + 7 / 3 * (up @ down)
    assert torch.equal(dict(model.named_parameters())[f"{name}.weight"], wanted)


def test_the_built_in_model_is_loaded_with_its_adapter_and_without(folder, monkeypatch):
    monkeypatch.setattr(opening, "builtin_folder", lambda: folder)
    stage_3, _ = infinitevl.load("builtin", device="cpu")
    stage_2, _ = infinitevl.load("builtin-stage2", device="cpu")
    plain, wanted = tiny_model().state_dict(), merged(_adapted()).state_dict()
    assert all(torch.equal(weight, plain[name]) for name, weight in stage_2.state_dict().items())
    assert all(torch.allclose(w, wanted[name], atol=1e-6) for name, w in stage_3.state_dict().items())


def test_an_adapter_of_another_model_is_refused(folder):
    with pytest.raises(CheckpointError, match="belongs to another model"):
        merge_adapter_(tiny_model(intermediate_size=80), folder / FOLDER)


def test_what_is_no_plain_adapter_is_refused_by_name(folder):
    path = folder / FOLDER / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(CheckpointError, match="use_dora: True"):
        infinitevl.load(folder, device="cpu")


def test_missing_and_odd_weights_are_told(folder):
    path = folder / FOLDER / WEIGHTS
    weights = load_file(path)
    save_file(dict(list(weights.items())[1:]), path)
    with pytest.raises(CheckpointError, match="pairs of A and B"):
        merge_adapter_(tiny_model(), folder / FOLDER)
    path.unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS):
        merge_adapter_(tiny_model(), folder / FOLDER)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_rslora", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "what comes next"),
        ("init_lora_weights", 1),
        ("alora_invocation_tokens", [5, 6]),
        ("use_qalora", True),
        ("use_bdlora", {"a": 1}),
        ("loftq_config", {"loftq_bits": 4}),
        ("layer_replication", [[0, 1]]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["weight"]),
        ("rank_pattern", {"q_proj": 2}),
        ("bias", "all"),
        ("lora_bias", True),
        ("peft_type", "LOHA"),
        ("a_field_of_a_later_peft", "on"),
        ("a_number_of_a_later_peft", 0.5),
        ("r", 0),
        ("r", "3"),
        ("r", True),
        ("lora_alpha", None),
        ("lora_alpha", float("nan")),
        ("r", 4),
    ],
)
def test_settings_that_are_not_known_to_be_plain_are_refused_by_name(folder, name, value):
    path = folder / FOLDER / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    model = tiny_model()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"{name}: "):
        merge_adapter_(model, folder / FOLDER)
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal"])
def test_starts_that_leave_the_base_alone_are_merged_as_peft_merges_them(start, tmp_path):
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"], init_lora_weights=start)
    adapted = peft.get_peft_model(tiny_model(), config)
    for weight in adapter_weights(adapted):
        weight.data.normal_(0, 0.2)
    adapted.save_pretrained(tmp_path)
    model = tiny_model()
    assert merge_adapter_(model, tmp_path) > 0
    wanted = adapted.merge_and_unload().state_dict()
    assert all(torch.allclose(weight, wanted[name], atol=1e-6) for name, weight in model.state_dict().items())


def test_settings_that_are_no_object_and_broken_weights_are_told(folder):
    (folder / FOLDER / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="not readable"):
        merge_adapter_(tiny_model(), folder / FOLDER)
    (folder / FOLDER / CONFIG).write_text("[]")
    with pytest.raises(CheckpointError, match="an object"):
        merge_adapter_(tiny_model(), folder / FOLDER)


@pytest.mark.parametrize("base, kept", [("builtin", None), ("someone/model", "someone/model")])
def test_saving_an_adapter_asks_no_hub(tmp_path, monkeypatch, base, kept):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []
    monkeypatch.setattr(
        "peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *given, **_: asked.append(given)
    )
    save_adapter(add_adapters(tiny_model(), 4, 8), base, tmp_path)
    assert not asked
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == kept
    assert f"`{base}`" in (tmp_path / "README.md").read_text()
