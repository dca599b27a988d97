"""Each loss against its formula in float64, in value and gradients, and how much memory it takes."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from infinitevl.training.losses import IGNORED, answer_loss, layer_loss, logits_loss, supervised
from tests.support import relative_error

N, C, WORDS = 37, 16, 203


def given(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = ["hidden", "teacher_hidden", "head", "teacher_head"]
    sizes = [(N, C), (N, C), (WORDS, C), (WORDS, C)]
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in zip(names, sizes, strict=True)}


def plain_kl(hidden, head, teacher_hidden, teacher_head, temperature):
    p = (teacher_hidden @ teacher_head.T / temperature).softmax(-1)
    log_q = (hidden @ head.T / temperature).log_softmax(-1)
    return temperature**2 * (p * (p.log() - log_q)).sum()


def with_gradients(function, tensors, *names):
    leaves = {key: x.detach().requires_grad_(key in names) for key, x in tensors.items()}
    loss = function(**leaves)
    return [loss.detach(), *torch.autograd.grad(3 * loss, [leaves[name] for name in names])]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 37, 1000])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_equals_a_float64_computation(chunk_tokens, temperature):
    ours = with_gradients(
        lambda **x: logits_loss(**x, temperature=temperature, chunk_tokens=chunk_tokens),
        given(),
        "hidden",
        "head",
    )
    wide = {name: tensor.double() for name, tensor in given().items()}
    wanted = with_gradients(lambda **x: plain_kl(**x, temperature=temperature), wide, "hidden", "head")
    assert all(relative_error(a, b) < 2e-6 for a, b in zip(ours, wanted, strict=True))


def test_kl_of_equal_models_is_zero():
    x = given()
    assert abs(logits_loss(x["hidden"], x["head"], x["hidden"], x["head"], 2.0).item()) < 1e-4


@pytest.mark.parametrize("chunk_tokens", [1, 10, 1000])
def test_cross_entropy_equals_a_float64_computation(chunk_tokens):
    labels = torch.randint(0, WORDS, (N,), generator=torch.Generator().manual_seed(5))
    tensors = {name: given()[name] for name in ("hidden", "head")}
    ours = with_gradients(
        lambda **x: answer_loss(**x, labels=labels, chunk_tokens=chunk_tokens), tensors, *tensors
    )
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    wanted = with_gradients(
        lambda hidden, head: F.cross_entropy(hidden @ head.T, labels, reduction="sum"), wide, *tensors
    )
    assert all(relative_error(a, b) < 2e-6 for a, b in zip(ours, wanted, strict=True))


def test_a_frozen_head_gets_no_gradient():
    x = given()
    x["hidden"].requires_grad_()
    labels = torch.zeros(N, dtype=torch.int64)
    answer_loss(x["hidden"], x["head"], labels).backward()
    assert x["head"].grad is None and x["hidden"].grad is not None


def test_no_tokens_make_no_loss_and_no_gradient():
    x = given()
    hidden = x["hidden"][:0].requires_grad_()
    loss = answer_loss(hidden, x["head"], torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and hidden.grad.shape == (0, C)


class Largest(TorchDispatchMode):
    """Remembers the largest number of values that any operation made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_logits_of_all_tokens_never_exist_at_once():
    x = given()
    x["hidden"].requires_grad_()
    with Largest() as seen:
        logits_loss(**x, temperature=2.0, chunk_tokens=4).backward()
        answer_loss(x["hidden"], x["head"], torch.zeros(N, dtype=torch.int64), chunk_tokens=4).backward()
    assert seen.size == max(4 * WORDS, WORDS * C)


def test_the_layer_loss_is_a_thousand_times_the_mean_square_of_each_real_token():
    a, b = torch.randn(2, 5, C), torch.randn(2, 5, C)
    counts = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    wanted = 1000 * ((a.double() - b.double()) ** 2).mean(-1)[counts].sum()
    assert relative_error(layer_loss(a, b, counts), wanted) < 1e-6
    assert relative_error(layer_loss(a, b) / 10, 1000 * F.mse_loss(a, b)) < 1e-6


def test_the_token_before_a_label_is_supervised():
    labels = torch.tensor([[IGNORED, IGNORED, 7, 8], [9, IGNORED, IGNORED, IGNORED]])
    assert supervised(labels).int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
