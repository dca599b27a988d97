"""The paper's tables: rows that are compared take equal steps, go on where they stopped, and say what was not
run."""

import json
from pathlib import Path

import pytest
import torch

from builtin import table_row
from builtin.table_data import StoredFeed, store
from builtin.table_figures import draw_figures
from builtin.table_page import write_page
from builtin.table_plan import Plan, Row, fit_steps, read_plan, rows_of
from builtin.table_results import gather, read_results
from infinitevl.errors import InputError
from infinitevl.training.losses import IGNORED
from tests.support import tiny_model, tiny_processor

RECIPE = Path(__file__).parents[2] / "recipes/tables/small.yaml"
TOKENS, PICTURE_TOKEN, TOKENS_OF_A_PICTURE = 64, 505, 4


@pytest.fixture
def plan() -> Plan:
    return read_plan(RECIPE)


class TextAndPictures:
    """A feed of two random batches a step."""

    def __init__(self) -> None:
        self.numbers = torch.Generator().manual_seed(0)

    def next(self):
        return [self.batch(with_pictures=True), self.batch(with_pictures=False)]

    def batch(self, *, with_pictures: bool):
        ids = torch.randint(0, 300, (2, TOKENS), generator=self.numbers)
        labels = torch.full_like(ids, IGNORED)
        labels[:, 40:44] = ids[:, 40:44]
        places = torch.arange(TOKENS).expand(3, 2, TOKENS).contiguous()
        batch = {"input_ids": ids, "labels": labels, "position_ids": places}
        batch["attention_mask"] = torch.ones_like(ids)
        if with_pictures:
            ids[:, 4 : 4 + TOKENS_OF_A_PICTURE] = PICTURE_TOKEN
            batch["pixel_values"] = torch.randn(2 * 16, 1176, generator=self.numbers)
            batch["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
        return batch


@pytest.fixture
def school(tmp_path: Path, plan: Plan) -> tuple[Plan, Path]:
    """A tiny teacher, stored steps and an exam; the plan for them, and the folder of runs."""
    teacher = tiny_model(layer_types=["full_attention"] * 4)
    teacher.save_pretrained(tmp_path / "teacher")
    tiny_processor().tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    runs = tmp_path / "runs"
    assert store(TextAndPictures(), teacher, runs / "data", 5, 60.0) == 5
    embeds = torch.randn(3, 7, teacher.config.text_config.hidden_size)
    prompt = {
        "embeds": embeds,
        "positions": torch.arange(7).expand(3, 3, 7),
        "lengths": torch.tensor([7, 5, 6]),
    }
    names = {name for tasks in plan.exam.tasks.values() for name in tasks}
    torch.save({name: [{**prompt, "right": [["a"]] * 3}] for name in names}, runs / "exam.pt")
    changes = {
        "teacher": str(tmp_path / "teacher"),
        "pack": str(tmp_path),
        "window": 12,
        "pace_seconds": 0.01,
    }
    return plan.model_copy(update=changes), runs


def decide(runs: Path, steps: int) -> None:
    (runs / "steps.json").write_text(json.dumps({"steps": steps}))


def test_rows_whose_stages_share_all_steps_take_equally_many(plan):
    whole = [row for row in plan.rows.values() if sum(row.stages.values()) == pytest.approx(1)]
    assert len(whole) >= 6
    for total in (4, 7, 1001):
        assert {sum(row.steps(total).values()) for row in whole} == {total}
        assert all(steps > 0 for row in whole for steps in row.steps(total).values())


def test_every_table_has_a_seed_of_each_row_before_second_seeds(plan):
    seeds = [row.seed for row in rows_of(plan)]
    assert seeds == sorted(seeds)
    assert {row.key for row in rows_of(plan)} == {
        key for table in plan.tables.values() for key in table.rows
    } | {"teacher"}


def test_steps_are_what_the_slowest_row_can_take(plan):
    paces = {
        "hybrid-0": {"distill-layers": 0.2, "distill-logits": 0.2, "sft": 0.1},
        "window-0": {"sft": 0.01},
    }
    steps = fit_steps(plan, paces, seconds=150.0)
    assert 0.8 * 1000 < steps <= 1000
    assert fit_steps(plan, paces, seconds=150.0, num_waves=2) <= steps / 2
    assert fit_steps(plan, paces, seconds=1e9) == plan.most_steps


def test_a_plan_that_names_unknown_rows_is_refused(tmp_path):
    (tmp_path / "plan.yaml").write_text(
        RECIPE.read_text().replace("[window, delta, hybrid]", "[windows, hybrid]")
    )
    with pytest.raises(InputError, match="windows"):
        read_plan(tmp_path / "plan.yaml")


def test_a_feed_goes_on_with_the_step_that_was_next(school):
    _, runs = school
    feed = StoredFeed(runs / "data", seed=3)
    seen = [feed.next()[0]["input_ids"] for _ in range(7)]
    again = StoredFeed(runs / "data", seed=3)
    again.go_on({"stored": 4})
    assert torch.equal(again.next()[0]["input_ids"], seen[4])
    later = StoredFeed(runs / "data", seed=3, first=6)
    assert torch.equal(later.next()[0]["input_ids"], seen[6])
    assert torch.equal(seen[0], seen[5])  # five were drawn
    other = StoredFeed(runs / "data", seed=4)
    assert other.order != feed.order


def test_features_stand_for_pixels(school):
    plan, runs = school
    batch = StoredFeed(runs / "data", 0).next()[0]
    student = table_row.Student(plan, Row("hybrid", 0, plan.rows["hybrid"]), torch.device("cpu"))
    embeds = student.model.model.embed(batch["input_ids"])
    assert batch["pixel_values"].shape == (2 * TOKENS_OF_A_PICTURE, embeds.shape[-1])


@pytest.mark.parametrize("key", ["hybrid", "window", "teacher"])
def test_a_row_is_taught_and_examined(school, key):
    plan, runs = school
    decide(runs, 8)
    row = Row(key, 0, plan.rows[key])
    assert table_row.run_row(plan, row, runs, torch.device("cpu"), float("inf"))
    result = row.result(runs)
    assert sum(result["steps"].values()) == (8 if row.plan.stages else 0)
    assert all(mark["samples"] == 3 for mark in result["marks"].values())


def test_a_row_that_was_stopped_goes_on_to_the_same_weights(school, monkeypatch):
    plan, runs = school
    decide(runs, 8)
    monkeypatch.setattr(table_row, "_AT_ONCE", 1)
    row, kept = Row("hybrid", 0, plan.rows["hybrid"]), []
    monkeypatch.setattr(table_row, "sit", lambda plan, model, path: kept.append(model.state_dict()) or {})
    table_row.run_row(plan, row, runs, torch.device("cpu"), float("inf"))
    (row.folder(runs) / "result.json").unlink()
    clock = iter(range(10_000))
    monkeypatch.setattr(table_row.time, "time", lambda: next(clock))
    calls = 0
    while not table_row.run_row(plan, row, runs, torch.device("cpu"), until=next(clock) + 4):
        calls += 1
    assert calls > 1
    assert all(torch.equal(weight, kept[1][name]) for name, weight in kept[0].items())


def test_trained_weights_outlive_stages_in_bfloat16(school, monkeypatch):
    """Products read copies there, which must not be what is examined, nor disturb the next stage."""
    plan, runs = school
    decide(runs, 8)
    row = Row("hybrid", 0, plan.rows["hybrid"])
    student = table_row.Student(plan, row, torch.device("cpu"))
    student.dtype = torch.bfloat16
    before = {name: weight.clone() for name, weight in student.model.state_dict().items()}
    assert table_row._teach(student, row.plan.steps(8), runs, row.folder(runs), float("inf"))
    weights = dict(student.model.named_parameters())
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    assert weights[name].dtype == torch.float32
    assert not torch.equal(weights[name], before[name])
    embedding = student.model.model.language_model.embed_tokens.weight
    assert embedding is student.model.lm_head.weight
    assert torch.equal(embedding, before["lm_head.weight"].bfloat16())


def test_what_was_not_run_says_so(school, plan, tmp_path):
    _, runs = school
    row, docs = Row("delta", 1, plan.rows["delta"]), tmp_path / "docs"
    row.folder(runs).mkdir()
    marks = {name: {"right": 1, "samples": 4} for tasks in plan.exam.tasks.values() for name in tasks}
    facts = {"row": "delta", "seed": 1, "steps": {"sft": 8}, "minutes": 1.0, "trained": {"sft": 10}}
    facts |= {"decoder": 20, "hardware": "CPU", "marks": marks}
    (row.folder(runs) / "result.json").write_text(json.dumps(facts))
    gather(plan, runs, docs)
    results = read_results(plan, docs)
    page = write_page(results, docs).read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "25.0" in lines[plan.rows["delta"].name]
    assert lines[plan.rows["hybrid"].name].count("not run") >= len(plan.exam.tasks)
    pytest.importorskip("matplotlib")
    drawn = {path.name for path in draw_figures(results, docs)}
    assert drawn == {f"tables-{name}.png" for name in plan.tables}


def test_a_page_without_any_run_is_written(plan, tmp_path):
    page = write_page(read_results(plan, tmp_path), tmp_path).read_text()
    assert "Rows: not run." in page
