"""Order, batches, resuming, and bad samples."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from infinitevl.errors import InputError
from infinitevl.training.data.loading import (
    BatchPlan,
    Loader,
    Shard,
    ShardState,
    choose_packed,
    describe_skipped,
)
from infinitevl.training.data.mixture import Mixture
from infinitevl.training.data.source import Samples

WORDS = "word sign says the"


def source(name="a", size=20, bad=()):
    def row(index):
        text = " ".join([WORDS] * (index % 5 + 1))
        answer = "" if index in bad else f"{index}"
        return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}

    return Samples(name, [row(index) for index in range(size)], lambda row: row, Path("."))


def mixture(seed=0, **options):
    return Mixture([source("a", 20), source("b", 7)], seed, **options)


def plan(**options):
    return BatchPlan(**{"max_tokens": 400, "ahead": 2.0, **options})


def names(step):
    return [batch.names for batch in step]


def same(one, two):
    return one.keys() == two.keys() and all(
        torch.equal(value, two[key]) if torch.is_tensor(value) else value == two[key]
        for key, value in one.items()
    )


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own():
    orders = [mixture().order(epoch).tolist() for epoch in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == [[0, i] for i in range(20)] + [[1, i] for i in range(7)]
    assert mixture().order(1).tolist() == orders[1]
    assert mixture(seed=1).order(1).tolist() != orders[1]


def test_weights_share_out_an_epoch_and_no_row_comes_again_before_all_have_come():
    mixed = mixture(weights=[1, 3], num_samples=20)
    assert mixed.counts == [5, 15]
    seen = [[], []]
    for epoch in range(4):
        for number, row in mixed.order(epoch).tolist():
            seen[number].append(row)
    assert sorted(seen[0]) == list(range(20))
    assert set(np.bincount(seen[1])) <= {8, 9}


def test_batches_hold_all_samples_within_the_budget(writer):
    batches = list(Shard(mixture(), writer, plan(), num_epochs=1))
    found = sorted(name for batch in batches for name in batch.names)
    assert found == sorted([f"a, row {i + 1}" for i in range(20)] + [f"b, row {i + 1}" for i in range(7)])
    assert all(batch.inputs["input_ids"].numel() <= 400 for batch in batches)
    assert len(batches) < 27
    assert min(batch.inputs["input_ids"].shape[1] for batch in batches[:-2]) > 300


def test_the_oldest_sample_is_always_taken():
    assert choose_packed([3, 9, 4, 6, 2], 10) == [0, 3]
    assert choose_packed([3, 5, 2, 2, 9], 10) == [0, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_goes_on_with_the_same_batches(writer, num_workers):
    loader = Loader(mixture(), writer, plan(batches_per_step=2), num_workers=num_workers)
    steps = iter(loader)
    for _ in range(7):
        next(steps)
    kept = {shard: json.loads(json.dumps(asdict(state))) for shard, state in loader.states.items()}
    wanted = [next(steps) for _ in range(9)]
    states = {shard: ShardState(**state) for shard, state in kept.items()}
    given = itertools.islice(Loader(mixture(), writer, plan(batches_per_step=2), states=states), 9)
    for one, two in zip(wanted, given, strict=True):
        assert names(one) == names(two)
        assert all(same(a.inputs, b.inputs) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_again_goes_on_after_the_last_step(writer, num_workers):
    whole = itertools.islice(Loader(mixture(), writer, plan(batches_per_step=2)), 6)
    loader = Loader(mixture(), writer, plan(batches_per_step=2), num_workers=num_workers)
    parts = [*itertools.islice(loader, 2), *itertools.islice(loader, 4)]
    assert [names(step) for step in parts] == [names(step) for step in whole]


def test_several_processes_read_what_one_reads(writer):
    alone = itertools.islice(Loader(mixture(), writer, plan(batches_per_step=4)), 5)
    ranks = [
        itertools.islice(Loader(mixture(), writer, plan(batches_per_step=4), rank=rank, world_size=2), 5)
        for rank in range(2)
    ]
    for step, first, second in zip(alone, *ranks, strict=True):
        assert names(step)[0::2] == names(first)
        assert names(step)[1::2] == names(second)


def test_many_batches_a_step_come_from_few_shards(writer):
    assert plan(batches_per_step=256).num_shards(8_000_000) == 32
    assert plan(batches_per_step=48).num_shards(8_000_000) == 24
    assert plan(batches_per_step=64).num_shards(27) == 16
    loader = Loader(mixture(), writer, plan(batches_per_step=64), num_workers=3)
    assert (len(loader.own), loader.num_workers, loader.num_batches) == (16, 2, 64)
    step = next(iter(loader))
    assert [batch.shard for batch in step] == list(range(16)) * 4
    halves = [
        next(iter(Loader(mixture(), writer, plan(batches_per_step=64), rank=rank, world_size=2)))
        for rank in range(2)
    ]
    assert [each.names for pair in zip(*halves, strict=True) for each in pair] == names(step)


def test_bad_samples_are_left_out_counted_and_named(writer):
    mixed = Mixture([source("a", 20, bad=(3, 11))], 0)
    shard = Shard(mixed, writer, plan(), num_epochs=1)
    found = [name for batch in shard for name in batch.names]
    assert len(found) == 18
    text = describe_skipped(shard.skipped)
    assert text.startswith("2 bad samples were left out:")
    assert "a, row 4: field messages[1].content: the answer is empty" in text
    assert "a, row 12" in text


def test_bad_samples_are_named_once_after_resuming(writer):
    mixed = Mixture([source("a", 20, bad=(3, 11))], 0)
    loader = Loader(mixed, writer, plan())
    next(iter(loader))
    again = Loader(mixed, writer, plan(), states=loader.states)
    steps = iter(again)
    while again.states[0].epoch < 3:
        next(steps)
    assert sorted(place for place, _ in again.states[0].skipped) == ["a, row 12", "a, row 4"]


def test_the_limit_holds_for_all_shards_together(writer):
    mixed = Mixture([source("a", 40, bad=range(10))], 0)
    with pytest.raises(InputError, match="more than 8"):
        for _ in itertools.islice(Loader(mixed, writer, plan(max_skipped=8, batches_per_step=4)), 50):
            pass


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_samples_stop_the_run(writer, num_workers):
    mixed = Mixture([source("a", 20, bad=range(10))], 0)
    with pytest.raises(InputError, match="6 samples were bad, more than 5"):
        for _ in itertools.islice(Loader(mixed, writer, plan(max_skipped=5), num_workers=num_workers), 50):
            pass


def test_plans_that_cannot_work_are_refused(writer):
    with pytest.raises(InputError, match="no rows"):
        Mixture([source(size=0)], 0)
    with pytest.raises(InputError, match="positive one each"):
        mixture(weights=[1.0])
    with pytest.raises(InputError, match="a batch 100: too few"):
        Shard(mixture(), writer, plan(max_tokens=100))
    with pytest.raises(InputError, match="read as 3 shards, which 2 processes cannot share"):
        Loader(mixture(), writer, plan(batches_per_step=3), world_size=2)
