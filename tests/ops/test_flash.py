"""How flash attention is put together for sinks; without a GPU plain torch takes the kernel's place."""

import pytest
import torch
from torch import Tensor

from infinitevl.ops import reference
from infinitevl.ops.attention import flash
from tests.support import relative_error


def weights_of(q, k, ends, is_causal, back):
    """Scores and what is seen of one sequence of queries and one of keys, aligned at their ends."""
    assert ends.queries.tolist() == [0, len(q)] and ends.keys.tolist() == [0, len(k)]
    assert ends.most_queries >= len(q) and ends.most_keys >= len(k)
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("thd,shd->hts", q, keys) * q.shape[-1] ** -0.5
    behind = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
    seen = torch.ones_like(behind, dtype=torch.bool)
    if is_causal:
        seen = behind >= 0
    if back >= 0:
        seen = seen & (behind <= back)
    return scores.masked_fill(~seen, float("-inf"))


def one_by_one(run, ends):
    """Each sequence of several as a call of its own."""
    for number in range(len(ends.queries) - 1):
        query = slice(*ends.queries[number : number + 2].tolist())
        key = slice(*ends.keys[number : number + 2].tolist())
        sizes = (torch.tensor([0, x.stop - x.start]) for x in (query, key))
        yield run(query, key, flash._Ends(*sizes, ends.most_queries, ends.most_keys))


def forward(q, k, v, ends, is_causal, back):
    def run(query, key, own):
        scores = weights_of(q[query], k[key], own, is_causal, back)
        values = v[key].repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return torch.einsum("hts,shd->thd", scores.softmax(-1), values), scores.logsumexp(-1)

    outs, sums = zip(*one_by_one(run, ends), strict=True)
    return torch.cat(outs), torch.cat(sums, dim=1)


def backward(d_out, inputs, out, sums, ends, is_causal, back):
    """As the kernel does it: from the result and the sums that it is given, which may be of more keys."""
    q, k, v = inputs
    assert sums.is_contiguous()
    group = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros_like(x) for x in inputs)

    def run(query, key, own):
        scores = weights_of(q[query], k[key], own, is_causal, back)
        weights = (scores - sums[:, query, None]).exp()
        values = v[key].repeat_interleave(group, dim=1)
        inner = torch.einsum("thd,shd->hts", d_out[query], values)
        inner = inner - (d_out[query] * out[query]).sum(-1).T[..., None]
        d_scores = weights * inner * q.shape[-1] ** -0.5
        dq[query] += torch.einsum("hts,shd->thd", d_scores, k[key].repeat_interleave(group, dim=1))
        for gradient, each in (
            (dk, torch.einsum("hts,thd->shd", d_scores, q[query])),
            (dv, torch.einsum("hts,thd->shd", weights, d_out[query])),
        ):
            gradient[key] += each.unflatten(1, (-1, group)).sum(2)

    list(one_by_one(run, ends))
    return dq, dk, dv


@pytest.fixture
def plain_kernel(monkeypatch):
    monkeypatch.setattr(flash, "_forward", forward)
    monkeypatch.setattr(flash, "_backward", backward)


@pytest.mark.usefixtures("plain_kernel")
@pytest.mark.parametrize("num_sinks", [0, 1, 4, 30])
@pytest.mark.parametrize("lengths", [[1], [8, 9], [30], [2, 12, 13, 1, 50, 8]])
def test_attention_with_sinks_and_its_gradients_equal_the_definition(lengths, num_sinks):
    window, total = 8, sum(lengths)
    generator = torch.Generator().manual_seed(total)
    inputs = [
        torch.randn(total, heads, 8, dtype=torch.float64, generator=generator, requires_grad=True)
        for heads in (4, 2, 2)
    ]

    def definition(*tensors: Tensor) -> Tensor:
        parts = zip(*(x.split(lengths) for x in tensors), strict=True)
        seen = [
            reference.window_attention(*(x[None] for x in part), window, 0, num_sinks)[0] for part in parts
        ]
        return torch.cat(seen)

    ends = torch.tensor([0, *lengths]).cumsum(0)
    given = flash.attend_packed(*inputs, ends, lengths, window, num_sinks)
    wanted = definition(*inputs)
    assert relative_error(given, wanted) < 1e-12
    weights = torch.randn(wanted.shape, dtype=torch.float64, generator=generator)
    found, right = (torch.autograd.grad((out * weights).sum(), inputs) for out in (given, wanted))
    for mine, theirs in zip(found, right, strict=True):
        assert relative_error(mine, theirs) < 1e-10 or (mine - theirs).abs().max() < 1e-12


def test_the_operations_hold_what_torch_asks_of_them(plain_kernel):
    q, k, v = (torch.randn(40, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    ends = torch.tensor([0, 10, 40])
    arguments = (q, k, v, ends, [10, 30], 30, 7, 3)
    torch.library.opcheck(flash._attend, arguments, test_utils=("test_schema", "test_faketensor"))
