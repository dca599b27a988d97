"""A teacher becomes a student: what is inherited is the same bit for bit, what is new starts as it should."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLConfig

import infinitevl
from infinitevl.config import FULL, LINEAR, SLIDING
from infinitevl.errors import CheckpointError, InfiniteVLError, InputError
from infinitevl.model.context import ForwardContext
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.qwen import from_qwen
from infinitevl.training.parts import STAGES, Part, part_of
from infinitevl.training.surgery import (
    INHERITED,
    NEW,
    TABLE_FILE,
    StudentPlan,
    folded,
    make_student,
    save_student,
    student_config,
    weight_table,
)
from infinitevl.training.teacher import load_teacher, teacher_config
from tests.support import DATA, prompt_inputs, relative_error, tiny_model
from tests.training.teachers import write_qwen

FORMS = [(False, True), (True, True), (False, False), (True, False)]
PLAN = StudentPlan(window=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_qwen(folder)
    return folder


def mixers(name):
    return ".self_attn." in name and "layers.0." not in name


@pytest.mark.parametrize(("flat", "older"), FORMS)
def test_every_form_of_a_qwen_checkpoint_is_inherited_bit_for_bit(tmp_path, flat, older):
    teacher = write_qwen(tmp_path, flat=flat, older=older)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert ("visual.patch_embed.proj.weight" in names) == older
    student = make_student(tmp_path, PLAN).state_dict()
    before = teacher.state_dict()
    inherited = [name for name in student if not mixers(name)]
    assert len(inherited) > 30
    assert all(torch.equal(student[name], before[name]) for name in inherited)


def test_a_teacher_computes_what_transformers_computes(folder):
    teacher = load_teacher(folder)
    inputs = prompt_inputs(teacher.config)
    del inputs["pixel_values_videos"], inputs["video_grid_thw"], inputs["second_per_grid_ts"]
    inputs["input_ids"] = inputs["input_ids"][:, :20]
    kinds = (inputs["input_ids"] == teacher.config.image_token_id).int()
    original = write_qwen(folder)
    with torch.no_grad():
        wanted = original(**inputs, mm_token_type_ids=kinds).logits
        assert relative_error(teacher(**inputs).logits, wanted) < 1e-5


def test_new_mixers_start_as_the_paper_has_them_and_copy_nothing(folder):
    student, teacher = make_student(folder, PLAN), load_teacher(folder)
    for number in (1, 2, 3):
        mixer = student.model.language_model.layers[number].self_attn
        assert not mixer.a_proj.weight.any() and not mixer.b_proj.weight.any()
        assert torch.equal(mixer.A_log, torch.zeros_like(mixer.A_log))
        assert math.isclose(torch.nn.functional.softplus(mixer.dt_bias).mean().item(), 0.001, rel_tol=1e-4)
        taps = mixer.k_conv1d.weight[:, 0]
        assert torch.equal(taps, torch.eye(4)[-1].expand_as(taps))
        copied = teacher.model.language_model.layers[number].self_attn.q_proj.weight
        assert copied.shape == mixer.q_proj.weight.shape  # the same name and shape, and yet not taken over
        assert (mixer.q_proj.weight - copied).abs().mean() > 0.01
        assert 0.015 < mixer.q_proj.weight.std() < 0.025


def test_the_same_seed_makes_the_same_student(folder):
    first, second = make_student(folder, PLAN).state_dict(), make_student(folder, PLAN).state_dict()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_fresh_projections_take_the_deviation_that_is_asked_for(folder):
    student = make_student(folder, StudentPlan(window=12, initializer_range=0.2))
    assert 0.18 < student.model.language_model.layers[1].self_attn.g_proj.weight.std() < 0.22


def test_window_layers_inherit_attention_and_see_less(folder):
    student, teacher = make_student(folder, PLAN), load_teacher(folder)
    pair = [model.model.language_model.layers[0] for model in (student, teacher)]
    assert [layer.self_attn.window for layer in pair] == [12, None]
    x = torch.randn(1, 30, 32)
    angles = teacher.model.language_model.rotary(torch.arange(30).expand(3, 1, -1))
    seen, wanted = (layer(x, ForwardContext(*angles)) for layer in pair)
    assert torch.equal(seen[:, :12], wanted[:, :12])
    assert relative_error(seen[:, 12:], wanted[:, 12:]) > 1e-3


def test_a_saved_student_loads_and_answers(folder, tmp_path):
    student = make_student(folder, PLAN)
    assert save_student(student, folder, tmp_path / "student") is None
    loaded = InfiniteVLForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert all(torch.equal(w, loaded.state_dict()[n]) for n, w in student.state_dict().items())
    model, processor = infinitevl.load(tmp_path / "student")
    assert isinstance(infinitevl.ChatSession(model, processor).say("word"), str)


def test_a_student_is_never_written_over_something(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InfiniteVLError, match="not empty"):
        save_student(make_student(folder, PLAN), folder, tmp_path)


def test_a_model_of_ours_with_full_attention_is_a_teacher_too(tmp_path):
    teacher = tiny_model(layer_types=[FULL] * 4)
    teacher.save_pretrained(tmp_path)
    student = make_student(tmp_path, StudentPlan(layer_types=[LINEAR, SLIDING, LINEAR, FULL], window=7))
    before, after = teacher.state_dict(), student.state_dict()
    kept = [
        name for name in after if ".self_attn." not in name or ".layers.1." in name or ".layers.3." in name
    ]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert student.config.text_config.sliding_window == 7


def test_untied_heads_are_inherited(tmp_path):
    teacher = tiny_model(layer_types=[FULL] * 4, tie_word_embeddings=False)
    teacher.save_pretrained(tmp_path)
    student = make_student(tmp_path, PLAN)
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)
    assert not torch.equal(student.lm_head.weight, student.get_input_embeddings().weight)


def test_a_hybrid_is_refused_as_teacher(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="linear_attention"):
        make_student(tmp_path, PLAN)


def test_another_kind_of_model_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="'llama'"):
        teacher_config(tmp_path)


def test_an_incomplete_teacher_is_refused(tmp_path):
    write_qwen(tmp_path)
    from safetensors.torch import save_file

    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj"):
        make_student(tmp_path, PLAN)


def test_wrong_plans_are_refused(folder):
    with pytest.raises(InputError, match="period is 0"):
        make_student(folder, StudentPlan(period=0))
    with pytest.raises(CheckpointError, match="names 2 layers of 4"):
        make_student(folder, StudentPlan(layer_types=[LINEAR, SLIDING]))


def test_the_table_names_every_weight_and_its_role(folder, tmp_path):
    student = make_student(folder, PLAN)
    rows = weight_table(student)
    assert [row.name for row in rows] == [name for name, _ in student.named_parameters()]
    assert {row.name for row in rows if row.origin == NEW} == {row.name for row in rows if mixers(row.name)}
    roles = {row.name.removeprefix("model.language_model."): row.roles for row in rows}
    assert roles["layers.1.self_attn.q_proj.weight"] == ("trains", "trains", "trains", "LoRA")
    assert roles["layers.1.self_attn.A_log"] == ("trains", "trains", "trains", "frozen")
    assert roles["layers.0.self_attn.q_proj.weight"] == ("frozen", "frozen", "trains", "LoRA")
    assert roles["layers.0.self_attn.q_proj.bias"] == ("frozen", "frozen", "trains", "frozen")
    assert roles["layers.2.mlp.up_proj.weight"] == ("frozen", "frozen", "trains", "LoRA")
    for name in ("embed_tokens.weight", "norm.weight"):
        assert set(roles[name]) == {"frozen"}
    assert all(set(row.roles) == {"frozen"} for row in rows if row.name.startswith("model.visual."))
    save_student(student, folder, tmp_path / "student")
    lines = (tmp_path / "student" / TABLE_FILE).read_text().splitlines()
    assert lines[0].split("\t") == ["weight", "shape", "origin", *STAGES]
    assert len(lines) == len(rows) + 1


def test_the_printed_table_covers_every_weight_once(folder):
    rows = weight_table(make_student(folder, PLAN))
    short = folded(rows)
    assert sum(count for _, _, count in short) == len(rows)
    assert len(short) < len(rows) / 1.5
    assert {row.origin for _, row, _ in short} == {INHERITED, NEW}


def test_the_student_of_the_papers_teacher_has_the_published_weights():
    config = Qwen2_5_VLConfig(
        text_config={
            **{"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36},
            **{"vocab_size": 151936, "num_attention_heads": 16, "num_key_value_heads": 2},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"hidden_size": 1280, "out_hidden_size": 2048, "tokens_per_second": 2},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        student = InfiniteVLForConditionalGeneration(student_config(from_qwen(config), StudentPlan()))
    published = json.loads((DATA / "published_4b/state_dict_shapes.json").read_text())
    assert {name: list(weight.shape) for name, weight in student.state_dict().items()} == published


def test_a_weight_belongs_to_one_part():
    kinds = [SLIDING, LINEAR]
    layer = "model.language_model.layers."
    assert part_of("model.visual.blocks.0.mlp.gate_proj.weight", kinds) == Part.VISION
    assert part_of("lm_head.weight", kinds) == Part.EMBEDDING
    assert part_of(f"{layer}0.self_attn.q_proj.bias", kinds) == Part.ATTENTION
    assert part_of(f"{layer}1.self_attn.o_norm.weight", kinds) == Part.DELTA_NET
    assert part_of(f"{layer}1.post_attention_layernorm.weight", kinds) == Part.NORM
