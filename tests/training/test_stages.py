"""What each stage learns from, and what it leaves alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from infinitevl.config import FULL, LINEAR, SLIDING
from infinitevl.model.context import ForwardContext
from infinitevl.training.data.packing import pack_samples
from infinitevl.training.data.tokens import Tokens
from infinitevl.training.lora import add_adapters, merged
from infinitevl.training.parts import (
    DISTILL_LAYERS,
    DISTILL_LOGITS,
    LONG_SFT,
    SFT,
    STAGES,
    Part,
    freeze_,
    part_of,
    role,
)
from infinitevl.training.stages.distill import distill_layers, distill_logits, same_layers, share_frozen_
from infinitevl.training.stages.inputs import answers
from infinitevl.training.stages.sft import sft
from tests.support import adapter_weights, prompt_inputs, relative_error, tiny_model
from tests.training.padding import pad_samples

IGNORED = -100
KINDS = [SLIDING, LINEAR, LINEAR, LINEAR]


def teacher_and_student():
    """Two models that differ in their mixers alone; the student's have learned something already."""
    teacher = tiny_model(layer_types=[FULL] * 4).requires_grad_(False)
    student = tiny_model(seed=1)
    own = student.state_dict()
    kept = {n: w for n, w in teacher.state_dict().items() if ".self_attn." not in n or "layers.0." in n}
    student.load_state_dict({**own, **kept})
    return teacher, student


def sample(length, seed):
    ids = torch.randint(0, 400, (length,), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[: length // 2] = IGNORED
    return Tokens(ids, labels, torch.arange(length).expand(3, -1))


def batch_of(*lengths):
    return pad_samples([sample(length, i) for i, length in enumerate(lengths)])


def losses_of(stage, teacher, student, batch):
    if stage == DISTILL_LAYERS:
        return distill_layers(student, teacher, batch)
    if stage == DISTILL_LOGITS:
        return distill_logits(student, teacher, batch, temperature=2.0)
    return sft(student, batch)


@pytest.mark.parametrize("stage", STAGES[:3])
def test_a_stage_moves_its_weights_and_no_others(stage):
    teacher, student = teacher_and_student()
    names = set(freeze_(student, KINDS, stage))
    before = copy.deepcopy(student.state_dict())
    taught = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        losses_of(stage, teacher, student, batch_of(20, 9)).backward()
        optimizer.step()
    moved = {n for n, w in student.named_parameters() if not torch.equal(w, before[n])}
    assert moved == names
    assert all(torch.equal(weight, taught[name]) for name, weight in teacher.state_dict().items())
    wanted = (
        {Part.DELTA_NET} if stage != SFT else {Part.DELTA_NET, Part.ATTENTION, Part.FEED_FORWARD, Part.NORM}
    )
    assert {part_of(name, KINDS) for name in names} == wanted


def test_layer_loss_is_zero_where_the_layers_are_the_same_and_gradients_reach_new_mixers_alone():
    teacher, student = teacher_and_student()
    freeze_(student, KINDS, DISTILL_LAYERS)
    distill_layers(student, teacher, batch_of(12)).backward()
    assert {n for n, p in student.named_parameters() if p.grad is not None} == {
        n for n, _ in student.named_parameters() if part_of(n, KINDS) == Part.DELTA_NET
    }
    same = copy.deepcopy(teacher)
    assert distill_layers(same, teacher, batch_of(30)).item() == 0


def test_each_layer_gets_the_teachers_input_and_the_mean_is_over_all_layers():
    teacher, student = teacher_and_student()
    batch = batch_of(20, 20)
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    with torch.no_grad():
        loss = distill_layers(student, teacher, batch)
        hidden = teacher(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        context = ForwardContext(*teacher.model.language_model.rotary(batch["position_ids"]))
        errors = []
        for number, (own, taught) in enumerate(
            zip(student.model.language_model.layers, teacher.model.language_model.layers, strict=True)
        ):
            x = hidden[number]
            errors.append(F.mse_loss(own(x, context).double(), taught(x, context).double()))
    assert relative_error(loss / 40, 1000 * torch.stack(errors).mean()) < 1e-5


@pytest.mark.parametrize("stage", STAGES[:3])
def test_padding_and_packing_change_no_loss_and_no_gradient(stage):
    teacher, student = teacher_and_student()
    freeze_(student, KINDS, stage)
    samples = [sample(length, i) for i, length in enumerate((20, 9, 70))]

    def gradients(batches):
        student.zero_grad()
        total = sum(losses_of(stage, teacher, student, batch) for batch in batches)
        total.backward()
        return [total.detach(), *(p.grad for p in student.parameters() if p.grad is not None)]

    alone = gradients([pad_samples([each]) for each in samples])
    for batch in (pad_samples(samples), pack_samples(samples)):
        together = gradients([batch])
        assert all(relative_error(a, b) < 1e-4 for a, b in zip(together, alone, strict=True))


def test_answers_are_learned_as_cross_entropy_with_pictures_too():
    student = tiny_model()
    inputs = prompt_inputs(student.config)
    labels = inputs["input_ids"].masked_fill(torch.arange(40) < 30, IGNORED)
    positions = student_positions(student, inputs)
    batch = {k: v for k, v in inputs.items() if k != "second_per_grid_ts"}
    loss = sft(student, {**batch, "labels": labels, "position_ids": positions})
    wanted = student(**inputs, labels=labels, use_cache=False).loss
    assert relative_error(loss.detach() / 10, wanted.detach()) < 1e-5


def student_positions(student, inputs):
    from infinitevl.model.positions import prompt_positions, token_kinds

    kinds = token_kinds(inputs["input_ids"], student.config)
    grids = {k: inputs[k] for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")}
    return prompt_positions(kinds, torch.zeros(1, dtype=torch.int64), student.config, **grids)[0]


def test_distilled_logits_count_every_real_token_on_demand():
    teacher, student = teacher_and_student()
    batch = batch_of(20, 9)
    with torch.no_grad():
        some = distill_logits(student, teacher, batch, 2.0)
        whole = distill_logits(student, teacher, batch, 2.0, all_tokens=True)
        inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
        p, q = (m(**inputs, use_cache=False).logits.double() / 2 for m in (teacher, student))
    kl = 4 * (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
    asked, _ = answers(batch)
    assert relative_error(some, kl[asked].sum()) < 1e-5
    assert relative_error(whole, kl[batch["attention_mask"].bool()].sum()) < 1e-5


def test_teacher_and_student_hold_frozen_weights_once():
    teacher, student = teacher_and_student()
    freeze_(student, KINDS, DISTILL_LAYERS)
    batch = batch_of(20)
    before = distill_layers(student, teacher, batch).item()
    frozen = [p for p in student.parameters() if not p.requires_grad]
    assert share_frozen_(student, teacher) == sum(p.nbytes for p in frozen)
    addresses = {p.data_ptr() for p in teacher.parameters()}
    assert all(p.data_ptr() in addresses for p in frozen)
    assert not any(p.data_ptr() in addresses for p in student.parameters() if p.requires_grad)
    assert share_frozen_(student, teacher) == 0
    assert distill_layers(student, teacher, batch).item() == before


def test_layers_that_teacher_and_student_share_are_not_computed_twice():
    teacher, student = teacher_and_student()
    freeze_(student, KINDS, DISTILL_LAYERS)
    share_frozen_(student, teacher)
    same = same_layers(student, teacher)
    assert same == {0}
    calls = []
    student.model.language_model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    for lengths, times in (((12, 9), 0), ((20,), 1)):  # the window of 12 holds the first batch alone
        batch, found = batch_of(*lengths), []
        for given in (frozenset(), same):
            calls.clear()
            student.zero_grad()
            loss = distill_layers(student, teacher, batch, given)
            loss.backward()
            found.append([loss.detach(), *(p.grad for p in student.parameters() if p.grad is not None)])
        assert len(calls) == times
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_shared_layer_with_sinks_is_computed_where_its_teacher_has_a_window_of_as_many_keys():
    teacher = tiny_model(layer_types=["sliding_attention"] * 4).requires_grad_(False)
    student = tiny_model(num_sink_tokens=4, sliding_window=8)
    own, first = student.state_dict(), teacher.model.language_model.layers[0].state_dict()
    layer = "model.language_model.layers.0."
    student.load_state_dict({**own, **{layer + name: weight for name, weight in first.items()}})
    freeze_(student, KINDS, DISTILL_LAYERS)
    share_frozen_(student, teacher)
    same = same_layers(student, teacher)
    assert 0 in same
    for length in (12, 20):
        losses = [distill_layers(student, teacher, batch_of(length), given) for given in (frozenset(), same)]
        assert torch.equal(*losses)


def test_gradient_checkpointing_changes_nothing():
    teacher, student = teacher_and_student()
    freeze_(student, KINDS, DISTILL_LAYERS)
    batch = batch_of(20)

    def gradients():
        student.zero_grad()
        distill_layers(student, teacher, batch).backward()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    plain = gradients()
    student.train()
    student.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(gradients(), plain, strict=True))


def adapted_student():
    student = tiny_model()
    wrapped = add_adapters(student, rank=4, alpha=8)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in adapter_weights(student):
            weight.normal_(0, 0.1)
    return student, wrapped


def test_lora_reaches_every_projection_of_both_kinds_of_layers():
    plain = tiny_model()
    names = [n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and "language_model.layers" in n]
    # attention: q k v o; Gated DeltaNet: q k v a b g o; feed-forward: gate up down
    assert len(names) == 1 * 4 + 3 * 7 + 4 * 3
    assert [n for n in names if role(f"{n}.weight", KINDS, LONG_SFT) != "LoRA"] == []
    student, _ = adapted_student()
    adapters = {n.split(".lora_")[0] for n, _ in student.named_parameters() if ".lora_" in n}
    assert adapters == set(names)
    assert {n for n, p in student.named_parameters() if p.requires_grad} == {
        n for n, _ in student.named_parameters() if ".lora_" in n
    }


def test_lora_trains_adapters_alone():
    student, _ = adapted_student()
    before = copy.deepcopy(student.state_dict())
    optimizer = torch.optim.AdamW(adapter_weights(student), lr=1e-2)
    sft(student, batch_of(20, 30)).backward()
    optimizer.step()
    moved = {n for n, w in student.state_dict().items() if not torch.equal(w, before[n])}
    assert moved == {n for n in before if ".lora_" in n}


def test_merged_adapters_compute_the_same(tmp_path):
    student, wrapped = adapted_student()
    ids = torch.randint(0, 400, (2, 50))
    with torch.no_grad():
        wanted, plain = student(ids).logits, tiny_model()(ids).logits
        assert relative_error(plain, wanted) > 1e-2
        whole = merged(wrapped)
        assert relative_error(whole(ids).logits, wanted) < 1e-5
    whole.save_pretrained(tmp_path)
    loaded = type(whole).from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, whole(ids).logits)
