"""Packed samples give the loss and the gradients that they give alone."""

import pytest
import torch
from torch.nn import functional

from infinitevl.errors import InputError
from infinitevl.ops.table import trainable
from infinitevl.training.data.packing import pack_samples
from infinitevl.training.data.tokens import Tokens
from infinitevl.training.losses import IGNORED
from tests.support import relative_error, tiny_model
from tests.training.data.conftest import chat, picture, video
from tests.training.padding import pad_samples

LENGTHS = (1, 70, 2, 3, 64, 1, 61, 13, 62)


def random_tokens(length, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 400, (length,), generator=generator)
    return Tokens(ids, ids.clone(), torch.arange(length).expand(3, -1))


@pytest.fixture
def samples(writer):
    texts = [random_tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    seen = [
        writer.write(chat(picture(), "the sign says", video(), "?")),
        writer.write(chat("word", picture((56, 56), 200), answer="the sign")),
    ]
    return [*texts[:4], seen[0], *texts[4:], seen[1]]


def gradients(model, batches):
    """The summed loss over all labels of these batches, in the model's dtype, and its gradients."""
    model.zero_grad()
    total = sum(summed_loss(model, batch) for batch in batches)
    total.backward()
    return total.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


def summed_loss(model, batch):
    labels = batch["labels"][:, 1:]
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def double(batch):
    return {
        key: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in batch.items()
    }


def alone(samples):
    return [double(pack_samples([sample])) | {"sequence_lengths": None} for sample in samples]


@pytest.mark.parametrize("join", [pack_samples, pad_samples])
def test_packed_equals_unpacked_in_loss_and_gradients(samples, join):
    model = tiny_model().double().train()
    wanted, wanted_gradients = gradients(model, alone(samples))
    given, given_gradients = gradients(model, [double(join(samples))])
    assert relative_error(given, wanted) < 1e-12
    for name, wanted_gradient in wanted_gradients.items():
        assert wanted_gradient.norm() > 0, name
        assert relative_error(given_gradients[name], wanted_gradient) < 1e-9, name


def test_packed_equals_unpacked_in_float32(samples):
    model = tiny_model().train()
    batches = [pack_samples([sample]) | {"sequence_lengths": None} for sample in samples]
    wanted, wanted_gradients = gradients(model, batches)
    given, given_gradients = gradients(model, [pack_samples(samples)])
    assert relative_error(given, wanted) < 1e-6
    for name, wanted_gradient in wanted_gradients.items():
        assert relative_error(given_gradients[name], wanted_gradient) < 2e-5, name  # two orders of summing


def test_kernels_that_train_fast_keep_samples_apart_too(samples):
    model = tiny_model().train()
    wanted, wanted_gradients = gradients(model, [pack_samples(samples)])
    for layer in model.model.language_model.layers:
        layer.self_attn.kernels = trainable(torch.float32)
    given, given_gradients = gradients(model, [pack_samples(samples)])
    assert relative_error(given, wanted) < 1e-6
    for name, wanted_gradient in wanted_gradients.items():
        assert relative_error(given_gradients[name], wanted_gradient) < 1e-4, name


def test_no_sample_feels_another(samples):
    model = tiny_model().double()
    first = double(pack_samples(samples))
    changed = [random_tokens(len(sample), 99) if i % 2 else sample for i, sample in enumerate(samples)]
    second = double(pack_samples(changed))
    with torch.no_grad():
        one, two = (model(**batch).logits[0].split(first["sequence_lengths"]) for batch in (first, second))
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        assert torch.equal(a, b) != bool(i % 2), f"sample {i} of {len(samples)}"


def test_a_first_token_is_never_learned_from_the_sample_before():
    batch = pack_samples([random_tokens(5, 0), random_tokens(4, 1)])
    assert batch["labels"][0, [0, 5]].tolist() == [IGNORED, IGNORED]
    model = tiny_model()
    given = model(**batch).loss
    assert torch.equal(given, model(**batch | {"labels": batch["input_ids"]}).loss)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_takes_packed_rows(samples):
    model = tiny_model().train()
    wanted, wanted_gradients = gradients(model, [pack_samples(samples)])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    given, given_gradients = gradients(model, [pack_samples(samples)])
    assert torch.equal(given, wanted)
    assert all(torch.equal(given_gradients[name], value) for name, value in wanted_gradients.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sequence_lengths": [5, 5]}, r"sequence_lengths is \[5, 5\] for tokens of shape \(1, 9\)"),
        ({"sequence_lengths": [9, 0]}, "positive lengths"),
        ({"position_ids": None}, "needs position_ids"),
        ({"attention_mask": torch.tensor([[1] * 8 + [0]])}, "no padding"),
    ],
)
def test_what_a_packed_row_cannot_have_is_refused(change, said):
    batch = pack_samples([random_tokens(5, 0), random_tokens(4, 1)])
    with pytest.raises(InputError, match=said):
        tiny_model()(**batch | change)


def test_a_row_without_samples_is_refused():
    with pytest.raises(InputError, match="no sample"):
        pack_samples([])
