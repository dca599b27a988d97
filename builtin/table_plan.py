"""What the tables compare: rows, their stages and steps, from one YAML file."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from infinitevl.config import FULL, LINEAR, SLIDING
from infinitevl.errors import InputError
from infinitevl.training.parts import DISTILL_LAYERS, DISTILL_LOGITS, SFT
from infinitevl.training.recipes import DrawSettings, SceneSettings, Strict

KINDS = {"S": SLIDING, "L": LINEAR, "F": FULL}
ORDER = (DISTILL_LAYERS, DISTILL_LOGITS, SFT)
Stage = Literal["distill-layers", "distill-logits", "sft"]
_SAFETY = 0.9  # a pace is measured over few steps
Share = Annotated[float, Field(gt=0, le=1)]


class DrawnData(Strict):
    """The batches of all rows."""

    num_steps: PositiveInt = Field(description="Steps that are drawn, at most.")
    minutes: PositiveFloat = Field(description="Of drawing, at most.")
    workers: int = Field(ge=0, description="Processes that plan pictures.")
    seed: int = Field(description="Of the samples.")
    draws: list[DrawSettings] = Field(min_length=1, description="The batches of a step.")


class Exam(Strict):
    """What every row is asked."""

    num_samples: PositiveInt = Field(description="Of each task.")
    tasks: dict[str, list[str]] = Field(description="Columns: the mean over tasks of builtin.evaluate.")


class RowPlan(Strict):
    """One student."""

    name: str = Field(description="As readers see it.")
    layers: Annotated[str, Field(pattern="^[SLF]+$")] = Field(description="Kinds, repeated to the depth.")
    stages: dict[Stage, Share] = Field(description="Share of the steps of each.")
    seeds: list[int] = Field(min_length=1, description="Of new mixers, and of the order of the data.")

    def layer_types(self, depth: int) -> list[str]:
        """The kind of each of `depth` layers."""
        return [KINDS[self.layers[number % len(self.layers)]] for number in range(depth)]

    def steps(self, total: int) -> dict[str, int]:
        """Steps of each stage, in the order of the pipeline; shares of 1 together give exactly `total`."""
        found, done, share = {}, 0, 0.0
        for stage in ORDER:
            if stage in self.stages:
                share += self.stages[stage]
                found[stage] = round(share * total) - done
                done += found[stage]
        return found


class TablePlan(Strict):
    """One table and its figure."""

    title: str = Field(description="Its heading.")
    rows: list[str] = Field(min_length=1, description="Which rows it compares.")
    order: list[tuple[str, str]] = Field(description="Pairs of which the paper has the first one above.")
    paper: dict[str, float] = Field(description="The paper's averages.")
    note: str = Field("", description="What a reader must know to read it.")


class Plan(Strict):
    """Everything that `builtin.tables` runs."""

    teacher: str = Field(description="Folder of a model of attention alone.")
    pack: str = Field(description="Folder of builtin.build_data.")
    recall: str = Field(description="Folder of builtin.recall.")
    window: PositiveInt = Field(description="Tokens that a window layer sees.")
    initializer_range: PositiveFloat = Field(description="Of fresh projections.")
    temperature: PositiveFloat = Field(description="Of stage 1b.")
    data: DrawnData = Field(description="What all rows learn from.")
    most_steps: PositiveInt = Field(description="Of a row.")
    learning_rate: dict[Stage, PositiveFloat] = Field(description="Of each stage.")
    pace_seconds: PositiveFloat = Field(description="Of each stage, to measure a row's pace.")
    exam_seconds: PositiveFloat = Field(description="Kept free at the end.")
    exam: Exam = Field(description="What every row is asked.")
    rows: dict[str, RowPlan] = Field(description="The students; the first ones are run first.")
    tables: dict[str, TablePlan] = Field(description="What is drawn from them.")
    opening: str = Field(description="The beginning of the page.")

    @model_validator(mode="after")
    def _names_meet(self) -> "Plan":
        for name, table in self.tables.items():
            named = {*table.rows, *table.paper, *(row for pair in table.order for row in pair)}
            if unknown := sorted(named - set(self.rows)):
                raise ValueError(f"table {name!r} names rows {unknown}, and there are {sorted(self.rows)}")
        return self

    @property
    def scenes(self) -> SceneSettings:
        """What is drawn, as a stage's recipe would say it."""
        return SceneSettings(pack=str(Path(self.pack) / "train.pack"), split="train", draws=self.data.draws)

    @property
    def tokenizer(self) -> Path:
        """Of the small world."""
        return Path(self.pack) / "tokenizer.json"


def read_plan(path: Path) -> Plan:
    """Raises InputError that names what is wrong in the file."""
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(f"{path} is no plan of tables: {error}") from error


@dataclass(frozen=True)
class Row:
    """One run: a student, and a seed."""

    key: str
    seed: int
    plan: RowPlan

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.key}-{self.seed}"

    def folder(self, runs: Path) -> Path:
        """Where it writes."""
        return runs / self.name

    def result(self, runs: Path) -> dict[str, Any] | None:
        """What came of it; None where it was not run to its end."""
        path = self.folder(runs) / "result.json"
        return json.loads(path.read_text()) if path.exists() else None


def rows_of(plan: Plan, tables: list[str] | None = None) -> list[Row]:
    """All runs, first seeds first, of these tables (default: all); the teacher is beside each of them.

    Raises:
        InputError: there is no such table.
    """
    if unknown := sorted(set(tables or ()) - set(plan.tables)):
        raise InputError(f"no tables {unknown}; there are {sorted(plan.tables)}.")
    chosen = [plan.tables[name] for name in tables or plan.tables]
    wanted = {key for table in chosen for key in table.rows}
    wanted |= {key for key, row in plan.rows.items() if not row.stages}
    runs = [Row(key, seed, row) for key, row in plan.rows.items() if key in wanted for seed in row.seeds]
    return sorted(runs, key=lambda run: run.plan.seeds.index(run.seed))


def fit_steps(plan: Plan, paces: dict[str, dict[str, float]], seconds: float, num_waves: int = 1) -> int:
    """Steps that every row can take in the time that is left.

    Args:
        paces: seconds of a step, by run and stage. num_waves: how often as many rows run one after another.
    """
    shares = {row.name: row.plan.stages for row in rows_of(plan)}
    slowest = max(
        (sum(shares[run][stage] * pace[stage] for stage in pace) for run, pace in paces.items() if pace),
        default=math.inf,
    )
    steps = int(_SAFETY * max(seconds, 0) / num_waves / slowest)
    return min(plan.most_steps, max(steps - steps % 20, 4))
