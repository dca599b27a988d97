"""The loop: exact sums, a resume that nobody notices, and clear stops."""

import json
import math
import os
import random
import signal
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from infinitevl.errors import InfiniteVLError
from infinitevl.training.checkpoint import CHECKPOINT, slim_checkpoint
from infinitevl.training.data.packing import pack_samples
from infinitevl.training.lora import add_adapters
from infinitevl.training.optimizer import cosine
from infinitevl.training.parts import SFT, freeze_
from infinitevl.training.settings import TrainerSettings
from infinitevl.training.sharding import Copied, Replicated
from infinitevl.training.stages.inputs import answers
from infinitevl.training.stages.sft import sft
from infinitevl.training.task import LossModule, TrainTask
from infinitevl.training.trainer import Trainer
from infinitevl.training.training_log import LOG, draw_loss, losses
from tests.support import relative_error, tiny_model
from tests.training.padding import pad_samples
from tests.training.test_stages import KINDS, sample

STEPS = 5


class Numbered:
    """Batches that follow from the number of the step."""

    def __init__(self, batches):
        self.batches, self.step = batches, 0

    def next_batches(self):
        found = self.batches(self.step)
        self.step += 1
        return found

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


def task_of(batches, student=None):
    if student is None:
        student = tiny_model()
        freeze_(student, KINDS, SFT)
    module = LossModule(student, lambda batch: sft(student, batch))
    return TrainTask(module, Numbered(batches), lambda batch: len(answers(batch)[1]))


def two_batches(step):
    rng = random.Random(step)
    lengths = [rng.randint(5, 40) for _ in range(3)]
    samples = [sample(length, 10 * step + i) for i, length in enumerate(lengths)]
    return [pack_samples(samples[:2]), pad_samples(samples[2:])]


def settings(**changes):
    return TrainerSettings(**{"num_steps": STEPS, "learning_rate": 1e-3, "save_every": 2, **changes})


def new_run(folder, batches=two_batches, student=None, identity=None, **changes):
    return Trainer(task_of(batches, student), settings(**changes), folder, Accelerator(cpu=True), identity)


def weights(run):
    return {name: weight.detach().clone() for name, weight in run.trained.items()}


def test_copies_made_once_a_step_learn_what_autocast_learns_bit_for_bit(tmp_path):
    def learned(folder, kind):
        task = task_of(two_batches)
        task.module.dtype = torch.bfloat16
        run = Trainer(task, settings(), folder, Accelerator(cpu=True))
        assert isinstance(run.sharding, kind)
        run.train()
        return weights(run), losses(folder / LOG)

    copied = learned(tmp_path / "copied", Copied)
    with mock.patch(
        "infinitevl.training.trainer.make_sharding", lambda module, here, *_: Replicated(module, here)
    ):
        cast = learned(tmp_path / "cast", Replicated)
    assert copied[1] == cast[1]
    assert all(torch.equal(weight, cast[0][name]) for name, weight in copied[0].items())


def test_accumulated_is_one_big_batch(tmp_path):
    samples = [sample(length, i) for i, length in enumerate((30, 8, 17))]
    ways = [
        lambda step: [pad_samples([each]) for each in samples],
        lambda step: [pack_samples(samples)],
        lambda step: [pad_samples(samples[:2]), pack_samples(samples[2:])],
    ]
    runs = [new_run(tmp_path / str(i), way, num_steps=1, clip=1e9) for i, way in enumerate(ways)]
    gradients = []
    for run in runs:
        batches = run.feed.next_batches()
        run.backward(batches, 1 / sum(run.task.count(batch) for batch in batches))
        gradients.append({name: weight.grad for name, weight in run.trained.items()})
    for other in gradients[1:]:
        assert all(relative_error(other[name], wanted) < 1e-4 for name, wanted in gradients[0].items())


class Killed(Exception):
    pass


def killed_at(step):
    def batches(number):
        if number == step:
            raise Killed
        return two_batches(number)

    return batches


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = new_run(tmp_path_factory.mktemp("whole"))
    assert run.train()
    return weights(run), losses(run.folder / LOG), totals(run.folder)


def totals(folder):
    """Tokens of the run up to each line of its log."""
    return [json.loads(line)["total_tokens"] for line in (folder / LOG).read_text().splitlines()]


@pytest.mark.parametrize("step", range(1, STEPS))
def test_killed_at_any_step_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, uninterrupted, step):
    with pytest.raises(Killed):
        new_run(tmp_path, killed_at(step)).train()
    again = new_run(tmp_path)
    if step >= 2:
        again.resume()
        assert again.step == step // 2 * 2
    assert again.train()
    wanted, lines, tokens = uninterrupted
    assert all(torch.equal(weight, wanted[name]) for name, weight in weights(again).items())
    assert losses(tmp_path / LOG) == lines
    assert totals(tmp_path) == tokens


def adapted():
    torch.manual_seed(4)
    student = tiny_model()
    add_adapters(student, rank=4, alpha=8, dropout=0.2)
    return student


def test_dropout_resumes_bit_for_bit_too(tmp_path):
    whole = new_run(tmp_path / "whole", student=adapted())
    whole.train()
    part = new_run(tmp_path / "part", student=adapted())
    part.train(stop_after=3)
    part.save()
    torch.rand(7)
    rest = new_run(tmp_path / "part", student=adapted())
    rest.resume()
    rest.train()
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(rest).items())


def test_the_loss_falls(tmp_path):
    run = new_run(tmp_path, lambda step: two_batches(0), num_steps=12, learning_rate=5e-3)
    run.train()
    curve = [loss for _, loss in losses(tmp_path / LOG)]
    assert curve[-1] < 0.8 * curve[0]


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    run = new_run(tmp_path, learning_rate=1e-3)
    original = run.module.loss
    run.module.loss = lambda batch: original(batch) * (math.nan if run.step == 3 else 1)
    with pytest.raises(InfiniteVLError, match=r"step 4: the loss is nan.*last good step"):
        run.train()
    assert all(torch.isfinite(weight).all() for weight in run.trained.values())
    assert torch.load(tmp_path / CHECKPOINT)["step"] == 2


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run = new_run(tmp_path)
    run.train(stop_after=2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InfiniteVLError, match="No space left"):
        run.train()
    assert torch.load(tmp_path / CHECKPOINT)["step"] == 2


def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path):
    new_run(tmp_path, identity={"learning_rate": 1e-3}).train()
    with pytest.raises(InfiniteVLError, match=r"learning_rate: 0\.001 then, 0\.01 now"):
        new_run(tmp_path, identity={"learning_rate": 1e-2}).resume()


def test_resuming_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(InfiniteVLError, match=r"no .*checkpoint\.pt to resume from"):
        new_run(tmp_path).resume()


def test_a_damaged_checkpoint_says_so(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"PK\x03\x04 not one")
    with pytest.raises(InfiniteVLError, match="damaged"):
        new_run(tmp_path).resume()


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_zero():
    given = TrainerSettings(num_steps=100, learning_rate=2e-4, warm_up=0.05)
    rates = [cosine(given, step) for step in range(100)]
    assert rates[0] == pytest.approx(4e-5) and rates[4] == rates[5] == 2e-4
    assert rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] < 1e-7
    assert rates[52] == pytest.approx(1e-4, rel=0.03)


def test_matrices_decay_and_nothing_else(tmp_path):
    groups = new_run(tmp_path).optimizer.param_groups
    decays = [(group["weight_decay"], {p.dim() for p in group["params"]}) for group in groups]
    assert decays == [(0.01, {2}), (0.0, {1, 3})]


def test_the_log_counts_the_tokens_of_the_whole_run(tmp_path):
    run = new_run(tmp_path)
    steps = [run.train_step()["tokens"] for _ in range(STEPS)]
    assert run.log.total_tokens == sum(steps) > 0


def test_a_checkpoint_from_before_totals_gives_a_log_without_them(tmp_path):
    run = new_run(tmp_path)
    run.train(stop_after=2)
    kept = torch.load(tmp_path / CHECKPOINT)
    del kept["total_tokens"]
    torch.save(kept, tmp_path / CHECKPOINT)
    again = new_run(tmp_path)
    again.resume()
    assert again.train()
    assert "total_tokens" not in (tmp_path / LOG).read_text().splitlines()[-1]


def test_the_log_says_how_fast_and_how_long(tmp_path):
    new_run(tmp_path, num_steps=2).train()
    line = json.loads((tmp_path / LOG).read_text().splitlines()[-1])
    assert line["step"] == 2 and line["tokens_per_second"] > 0 and line["seconds_left"] == 0


def test_the_loss_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    new_run(tmp_path, num_steps=2).train()
    draw_loss(tmp_path / LOG, tmp_path / "loss.png", "sft")
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


def pressing(step, times):
    def batches(number):
        if number == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return two_batches(number)

    return batches


def test_ctrl_c_ends_a_run_after_its_step(tmp_path, capfd):
    before = signal.getsignal(signal.SIGINT)
    run = new_run(tmp_path, pressing(2, 1))
    assert not run.train() and run.step == 3
    assert "Ctrl-C once more" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("step", "kept"), [(0, "no step was saved yet"), (3, rf"{CHECKPOINT} holds .*, 2")])
def test_ctrl_c_twice_ends_a_run_at_once(tmp_path, step, kept):
    with pytest.raises(KeyboardInterrupt, match=f"Stopped in step {step + 1}; .*{kept}"):
        new_run(tmp_path, pressing(step, 2)).train()


class TwoHeads(nn.Module):
    """A model of another shape than the published stages': a body and two heads, with a loss each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def losses(self, batch):
        x = self.body(batch["x"])
        found = {"left": self.left(x).square().mean()}
        return found | {"right": self.right(x).square().mean()} if batch["has_right"] else found


def two_heads(folder, **changes):
    student = TwoHeads()
    feed = Numbered(lambda step: [{"x": torch.ones(2, 4), "has_right": right} for right in (False, True)])
    module = LossModule(student, student.losses)
    task = TrainTask(module, feed, lambda batch: 1, **changes)
    return student, Trainer(task, settings(num_steps=3), folder, Accelerator(cpu=True))


def test_the_log_shows_the_terms_of_a_loss_which_add_up_to_it(tmp_path):
    student, trainer = two_heads(tmp_path)
    with torch.no_grad():
        left = student.losses({"x": torch.ones(2, 4), "has_right": True})
    assert trainer.train()
    first = json.loads((tmp_path / LOG).read_text().splitlines()[0])
    assert first["left"] == pytest.approx(left["left"].item())  # in both batches: the mean
    assert first["right"] == pytest.approx(left["right"].item() / 2)  # in one of two
    assert first["loss"] == pytest.approx(first["left"] + first["right"])


def test_weights_have_learning_rates_of_their_own_and_a_task_its_schedule(tmp_path):
    rates = {"student.body.weight": 0.5, "student.body.bias": 0.0}
    student, trainer = two_heads(
        tmp_path, lr_scale=lambda name: rates.get(name, 1.0), schedule=lambda given, step: 1e-2 / (step + 1)
    )
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    trainer.train_step()
    moved = {name: (weight - before[name]).abs().max() for name, weight in student.state_dict().items()}
    assert moved["body.bias"] == 0
    assert moved["body.weight"] == pytest.approx(0.5e-2, rel=0.02)  # Adam's first step is the rate itself
    assert moved["left.weight"] == pytest.approx(1e-2, rel=0.02)
    assert trainer.train_step()["learning_rate"] == 5e-3


def test_copies_leave_embeddings_alone_as_autocast_does(tmp_path):
    student = tiny_model()
    copied = Copied(LossModule(student, lambda batch: sft(student, batch)), torch.bfloat16)
    assert student.model.language_model.embed_tokens.weight.dtype == torch.float32
    assert student.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    copied.restore_module()
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}


def test_a_run_whose_time_is_over_ends_after_its_step(tmp_path):
    run = new_run(tmp_path)
    assert not run.train(seconds=0.0) and run.step == 1
    assert run.train(seconds=1000.0) and run.step == STEPS


def test_a_slim_checkpoint_goes_on_with_rounded_weights_and_a_warm_up(tmp_path, monkeypatch):
    monkeypatch.setattr("infinitevl.training.trainer._FRESH_STEPS", 5)
    run = new_run(tmp_path / "whole", num_steps=20)
    run.train(stop_after=6)
    run.save()
    slim = tmp_path / "slim" / CHECKPOINT
    slim_checkpoint(tmp_path / "whole", slim)
    assert slim.stat().st_size < (tmp_path / "whole" / CHECKPOINT).stat().st_size / 4
    again = new_run(tmp_path / "slim", num_steps=20)
    again.resume()
    assert again.step == 6 and not again.optimizer.state
    found = weights(again)
    assert all(weight.dtype == torch.float32 for weight in found.values())
    assert all(torch.equal(found[name], weight.bfloat16().float()) for name, weight in weights(run).items())
    rates = [again.train_step()["learning_rate"] for _ in range(8)]
    wanted = [cosine(again.settings, 6 + step) * min(1.0, (step + 1) / 5) for step in range(8)]
    assert rates == pytest.approx(wanted)
    again.save()
    whole = new_run(tmp_path / "slim", num_steps=20)
    whole.resume()
    assert whole.train_step()["learning_rate"] == pytest.approx(cosine(whole.settings, 14))
