import os
import signal

import pytest
from typer.testing import CliRunner

from infinitevl.cli import app
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training import stage
from infinitevl.training.checkpoint import read_checkpoint
from infinitevl.training.trainer import Trainer
from tests.training.stages import write_recipe, write_world
from tests.training.teachers import write_qwen


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_init_writes_a_student_and_prints_where_each_weight_comes_from(tmp_path):
    write_qwen(tmp_path / "teacher")
    types = "linear,sliding,linear,full"
    made = run(
        "init", "--teacher", tmp_path / "teacher", "--out", tmp_path / "student", "--layer-types", types
    )
    assert made.exit_code == 0, made.stderr or made.exception
    lines = [line.split() for line in made.stdout.splitlines()]
    assert ["model.language_model.layers.*.self_attn.b_proj.weight", "2", "new"] in [x[:3] for x in lines]
    student = InfiniteVLForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert ",".join(kind.split("_")[0] for kind in student.config.text_config.layer_types) == types


def test_init_gives_a_student_sinks(tmp_path):
    write_qwen(tmp_path / "teacher")
    sizes = ["--window", 48, "--sinks", 16]
    assert run("init", "--teacher", tmp_path / "teacher", "--out", tmp_path / "s", *sizes).exit_code == 0
    text = InfiniteVLForConditionalGeneration.from_pretrained(tmp_path / "s").config.text_config
    assert (text.num_sink_tokens, text.sliding_window) == (16, 48)


def test_the_attention_of_a_command_counts_more_than_the_recipes(tmp_path):
    world = write_world(tmp_path)
    recipe = write_recipe(world, "sft", tmp_path / "run", num_steps=3, save_every=1, attention="full")
    done = run("sft", "--recipe", recipe, "--attention", "streaming")
    assert done.exit_code == 0, done.stderr or done.exception
    text = InfiniteVLForConditionalGeneration.from_pretrained(tmp_path / "run/model").config.text_config
    assert text.num_sink_tokens == 3


def test_init_refuses_a_full_folder_before_it_reads_a_teacher(tmp_path):
    (tmp_path / "something").touch()
    refused = run("init", "--teacher", "nowhere", "--out", tmp_path)
    assert refused.exit_code == 2 and "not empty" in refused.stderr


def test_init_names_a_layer_type_that_does_not_exist(tmp_path):
    write_qwen(tmp_path / "teacher")
    wrong = ["--layer-types", "linear,slidding,linear,full"]
    refused = run("init", "--teacher", tmp_path / "teacher", "--out", tmp_path / "student", *wrong)
    assert refused.exit_code == 2 and "slidding_attention" in refused.stderr


def test_init_says_that_the_built_in_model_is_no_teacher(tmp_path):
    refused = run("init", "--teacher", "builtin", "--out", tmp_path / "student")
    assert refused.exit_code == 2 and "'builtin' cannot be a teacher" in " ".join(refused.stderr.split())


def test_a_stage_runs_from_its_recipe(tmp_path):
    world = write_world(tmp_path)
    recipe = write_recipe(world, "distill-layers", tmp_path / "run", num_steps=2)
    dry = run("distill-layers", "--recipe", recipe, "--dry-run")
    assert dry.exit_code == 0 and "parameters train" in dry.stdout, dry.stderr or dry.exception
    done = run("distill-layers", "--recipe", recipe)
    assert done.exit_code == 0 and "run/model" in done.stdout, done.stderr or done.exception
    again = run("distill-layers", "--recipe", recipe)
    assert again.exit_code == 2 and "--resume" in again.stderr


def test_a_recipe_of_another_stage_or_with_a_typo_is_refused(tmp_path):
    recipe = write_recipe(tmp_path, "sft", tmp_path / "run")
    refused = run("long-sft", "--recipe", recipe)
    assert refused.exit_code == 2 and "train sft" in " ".join(refused.stderr.split())
    wrong = write_recipe(tmp_path, "sft", tmp_path / "run", clipp=1)
    refused = run("sft", "--recipe", wrong)
    assert refused.exit_code == 2 and "'clipp'" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_saves_the_step_and_says_how_to_go_on(tmp_path, monkeypatch, number):
    """So do a scheduler that sends SIGTERM, and a terminal that is closed."""
    recipe = write_recipe(write_world(tmp_path), "sft", tmp_path / "run")
    train_step = Trainer.train_step

    def pressed(self):
        if self.step == 2:
            os.kill(os.getpid(), number)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", pressed)
    stopped = run("sft", "--recipe", recipe)
    assert stopped.exit_code == 130, stopped.exception
    last = stopped.stdout.splitlines()[-1]
    assert "Stopped after step 3 of 5" in last and "checkpoint.pt" in last and "--resume" in last
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "run")["step"] == 3
    assert run("sft", "--recipe", recipe, "--resume").exit_code == 0


def test_ctrl_c_before_the_first_step_says_that_nothing_is_kept(tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path, "sft", tmp_path / "run")

    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "open_stage", pressed)
    stopped = run("sft", "--recipe", recipe)
    assert stopped.exit_code == 130
    assert "Stopped before the first step" in stopped.stdout and "no checkpoint yet" in stopped.stdout
