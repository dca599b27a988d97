"""Arguments of `forward`: each takes effect or is refused with what is valid."""

import functools

import pytest
import torch
from transformers import Trainer, TrainingArguments

from infinitevl.errors import CheckpointError, InputError
from infinitevl.model.hf_cache import StateCache
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import prompt_positions, token_kinds
from tests.support import prompt_inputs, relative_error, tiny_config, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def inputs(model):
    return prompt_inputs(model.config)


@pytest.fixture
def ids():
    return torch.randint(0, 400, (2, 20), generator=torch.Generator().manual_seed(0))


def positions_of(model, inputs):
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    kinds, start = token_kinds(inputs["input_ids"], model.config), torch.zeros(1, dtype=torch.int64)
    return prompt_positions(kinds, start, model.config, **{name: inputs[name] for name in names})[0]


def test_a_tuple_is_returned_where_it_is_asked_for(model, ids):
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=False)
        given = model(input_ids=ids, use_cache=False, return_dict=False)
        assert isinstance(given, tuple) and torch.equal(given[0], out.logits)
        model.config.return_dict = False
        try:
            given = model(input_ids=ids, labels=ids, use_cache=False)
            inner = model.model(input_ids=ids, use_cache=False)
        finally:
            model.config.return_dict = True
    assert isinstance(inner, tuple) and inner[0].shape == (2, 20, 32)
    assert isinstance(given, tuple) and given[0].dim() == 0 and torch.equal(given[1], out.logits)


def test_hidden_states_come_by_keyword_and_by_configuration(model, ids):
    with torch.no_grad():
        wanted = model(input_ids=ids, output_hidden_states=True).hidden_states
        model.config.output_hidden_states = True
        try:
            given = model(input_ids=ids).hidden_states
            assert model(input_ids=ids, output_hidden_states=False).hidden_states is None
        finally:
            model.config.output_hidden_states = False
    assert len(wanted) == 5 and all(torch.equal(x, y) for x, y in zip(wanted, given, strict=True))


def test_hidden_states_of_a_padded_batch_stand_at_their_tokens(model, ids):
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[0, :6], mask[1, 15:] = 0, 0
    with torch.no_grad():
        batch = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for row, part in enumerate((slice(6, None), slice(0, 15))):
            alone = model(input_ids=ids[row : row + 1, part], output_hidden_states=True).hidden_states
            for given, wanted in zip(batch, alone, strict=True):
                assert relative_error(given[row, part], wanted[0]) < 1e-5


def test_the_loss_is_divided_by_the_number_of_items_in_the_batch(model, ids):
    with torch.no_grad():
        mean = model(input_ids=ids, labels=ids, use_cache=False).loss
        given = model(input_ids=ids, labels=ids, use_cache=False, num_items_in_batch=100).loss
    assert torch.allclose(given, mean * 2 * 19 / 100)


def test_the_trainer_of_transformers_passes_the_number_of_items(ids, tmp_path, monkeypatch):
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        report_to=[],
        use_cpu=True,
        learning_rate=0.0,
        disable_tqdm=True,
    )
    learner, seen = tiny_model(), []

    @functools.wraps(learner.forward)
    def watched(*args, forward=learner.forward, **kwargs):
        seen.append(int(kwargs["num_items_in_batch"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(learner, "forward", watched)
    data = [{"input_ids": row, "labels": row} for row in (ids[0], ids[1, :9])]
    Trainer(learner, arguments, train_dataset=data).train()
    assert seen in ([29, 29], [27, 27])  # with or without each row's first token, which is not predicted


def test_the_trainer_of_transformers_evaluates_predicts_and_counts(ids, tmp_path):
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        label_smoothing_factor=0.1,
    )
    data = [{"input_ids": row, "labels": row} for row in ids]
    seen = []

    def metrics(given):
        seen.append(given.predictions.shape)
        return {}

    trainer = Trainer(tiny_model(), arguments, train_dataset=data, eval_dataset=data, compute_metrics=metrics)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(data).predictions.shape == (2, 20, 512) == seen[0] and len(seen) == 4


def test_labels_that_were_shifted_before_give_the_same_loss(model, ids):
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    with torch.no_grad():
        wanted = model(input_ids=ids, labels=ids, use_cache=False).loss
        assert torch.equal(model(input_ids=ids, shift_labels=shifted).loss, wanted)
        assert torch.equal(model(input_ids=ids, labels=ids, shift_labels=shifted).loss, wanted)
        halves = model(input_ids=ids, shift_labels=shifted, num_items_in_batch=100).loss
    assert torch.allclose(halves, wanted * 2 * 19 / 100)
    with pytest.raises(InputError, match="lables"):
        model(input_ids=ids, lables=ids)


def test_positions_of_every_valid_form_are_one(model, inputs, ids):
    positions = positions_of(model, inputs)
    with torch.no_grad():
        wanted = model(**inputs).logits
        assert torch.equal(model(**inputs, position_ids=positions).logits, wanted)
        with_text_row = torch.cat([torch.arange(40).expand(1, 1, -1), positions])
        assert torch.equal(model(**inputs, position_ids=with_text_row).logits, wanted)
        plain = torch.arange(20).expand(2, -1)
        assert torch.equal(model(input_ids=ids, position_ids=plain).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    "shape", [(1, 2, 20), (2, 2, 20), (5, 2, 20), (3, 2, 19), (3, 1, 20), (2, 19), (20,)]
)
def test_positions_of_another_shape_are_refused(model, ids, shape):
    with pytest.raises(InputError, match=r"\(3, 2, 20\)"), torch.no_grad():
        model(input_ids=ids, position_ids=torch.zeros(shape, dtype=torch.int64))


def test_positions_that_are_no_whole_numbers_are_refused(model, ids):
    with pytest.raises(InputError, match="float32"):
        model(input_ids=ids, position_ids=torch.zeros(2, 20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.update(pixel_values=x["pixel_values"][:-1]), r"\(23, 1176\).*\(24, 1176\)"),
        (lambda x: x.update(pixel_values=torch.cat([x["pixel_values"]] * 2)), r"\(48, 1176\)"),
        (lambda x: x.update(pixel_values=x["pixel_values"][:, 1:]), r"\(24, 1175\)"),
        (lambda x: x.update(image_grid_thw=torch.tensor([[1, 3, 8]])), "multiples of 2"),
        (lambda x: x.update(image_grid_thw=torch.tensor([[1, 8, 3]])), "multiples of 2"),
        (lambda x: x.update(image_grid_thw=torch.tensor([[0, 4, 6]])), "0 x 4 x 6"),
        (lambda x: x.pop("image_grid_thw"), "image_grid_thw"),
        (lambda x: x.pop("video_grid_thw"), "video_grid_thw"),
        (lambda x: x.update(video_grid_thw=torch.tensor([[2, 4, 4], [2, 4, 4]])), "need"),
        (lambda x: x.update(second_per_grid_ts=[]), "0 times for 1 videos"),
        (lambda x: x.update(second_per_grid_ts=[0.5, 0.5]), "2 times for 1 videos"),
        (lambda x: x.update(second_per_grid_ts=[-0.5]), "negative"),
        (lambda x: x.update(second_per_grid_ts=[float("nan")]), "finite"),
    ],
)
def test_pixels_grids_and_times_that_do_not_fit_are_refused(model, inputs, change, message):
    change(inputs)
    with pytest.raises(InputError, match=message), torch.no_grad():
        model(**inputs)


@pytest.mark.parametrize("name", ["image", "video"])
def test_a_grid_without_a_place_in_the_prompt_is_refused(model, ids, name):
    with pytest.raises(InputError, match=rf"1 {name}\(s\).*no place"), torch.no_grad():
        model(input_ids=ids[:1], **{f"{name}_grid_thw": torch.tensor([[1, 4, 4]])})


def test_places_of_pictures_in_the_padding_do_not_count(model, inputs):
    ids = inputs.pop("input_ids")
    padding = torch.full((1, 7), model.config.image_token_id)
    mask = torch.cat([torch.zeros(1, 7), torch.ones(1, 40)], 1)
    with torch.no_grad():
        wanted = model(input_ids=ids, **inputs).logits
        given = model(input_ids=torch.cat([padding, ids], 1), attention_mask=mask, **inputs).logits
    assert relative_error(given[:, 7:], wanted) < 1e-5


def test_embeddings_with_kinds_equal_ids(model, inputs):
    ids = inputs.pop("input_ids")
    kinds = token_kinds(ids, model.config)
    with torch.no_grad():
        wanted = model(input_ids=ids, **inputs).logits
        embeds = model.get_input_embeddings()(ids)
        given = model(inputs_embeds=embeds, mm_token_type_ids=kinds, **inputs).logits
        with pytest.raises(InputError, match="mm_token_type_ids"):
            model(inputs_embeds=embeds, mm_token_type_ids=kinds[:, 1:], **inputs)
    assert torch.equal(given, wanted)


def test_a_state_is_refused_while_gradients_are_recorded(model, ids):
    for asked in ({"use_cache": True}, {"past_key_values": StateCache()}):
        with pytest.raises(InputError, match="no_grad"):
            model(input_ids=ids, **asked)
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    assert out.past_key_values is None and model.lm_head.weight.grad is not None
    model.zero_grad()


def test_a_model_that_learns_nothing_may_remember_while_gradients_are_recorded(ids):
    model = tiny_model().requires_grad_(False)
    out = model(input_ids=ids, use_cache=True)
    assert int(out.past_key_values.state.length[0]) == 20
    with pytest.raises(InputError, match="no_grad"):
        model(inputs_embeds=torch.zeros(1, 3, 32, requires_grad=True), use_cache=True)


def test_each_layer_s_state_lies_where_that_layer_computes():
    model = tiny_model()
    layers = model.model.language_model.layers
    layers[2:].to("meta")
    assert [device.type for device in model.model.layer_devices] == ["cpu", "cpu", "meta", "meta"]
    state = model.allocate_state()
    places = [next(iter(vars(layer).values())).device.type for layer in state.layers]
    assert places == ["cpu", "cpu", "meta", "meta"]


def test_other_attention_than_torch_s_own_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    load = InfiniteVLForConditionalGeneration.from_pretrained
    for name in (None, "sdpa", "eager"):
        assert load(tmp_path, attn_implementation=name).device.type == "cpu"
    with pytest.raises(InputError, match=r"flash_attention_2.*sdpa"):
        load(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(InputError, match="flex_attention"):
        load(tmp_path).set_attn_implementation("flex_attention")
    assert tiny_config(attn_implementation="flash_attention_2")._attn_implementation is None


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_compiled_model_gives_the_same_with_a_state_and_without(model, ids, use_cache):
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        given, wanted = (each(input_ids=ids, use_cache=use_cache) for each in (compiled, model))
        assert relative_error(given.logits, wanted.logits) < 1e-5
        if use_cache:
            more = [
                each(input_ids=ids[:, :1], past_key_values=out.past_key_values).logits
                for each, out in ((compiled, given), (model, wanted))
            ]
            assert relative_error(*more) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "not both"),
        ({"inputs_embeds": torch.zeros(2, 20, 32)}, "not both"),
        ({"input_ids": [[1, 2]]}, "is list"),
        ({"input_ids": torch.zeros(20, dtype=torch.int64)}, "has shape"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "at least one token"),
        ({"input_ids": torch.zeros(1, 5)}, "whole numbers"),
        ({"input_ids": torch.full((1, 5), 512)}, "between 512 and 512"),
        ({"input_ids": torch.full((1, 5), -1)}, "between -1"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(3, 32)}, "has shape"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 3, 31)}, "has shape"),
        ({"attention_mask": [[1] * 20] * 2}, "attention_mask is list"),
        ({"attention_mask": {"sliding_attention": None}}, "attention_mask is dict"),
        ({"labels": torch.zeros(2, 5, dtype=torch.int64)}, "labels are"),
        ({"labels": torch.zeros(2, 20)}, "labels are torch.float32"),
        ({"labels": torch.zeros(2, 20, dtype=torch.int64), "logits_to_keep": 4}, "logits_to_keep"),
        ({"logits_to_keep": -3}, "logits_to_keep"),
        ({"logits_to_keep": "all"}, "logits_to_keep"),
        ({"logits_to_keep": torch.tensor([20])}, "logits_to_keep"),
    ],
)
def test_arguments_that_do_not_fit_are_told_by_name(model, ids, change, message):
    with pytest.raises(InputError, match=message):
        model(**{"input_ids": ids, **change}, use_cache=False)


def test_a_model_that_cannot_be_saved_says_where(model, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="it is a file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(CheckpointError, match="could not save into"):
        model.save_pretrained("/proc/nowhere")
