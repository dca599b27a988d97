"""What came of the rows, in one file (`tables.json`), from which page and figures are made."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from builtin.table_data import INDEX
from builtin.table_exam import mean_score
from builtin.table_plan import Plan, rows_of
from infinitevl.files import atomic_write

FILE, NOT_RUN = "tables.json", "not run"


@dataclass(frozen=True)
class Results:
    """rows: by key, one entry for each seed that was run to its end. facts: of the whole run."""

    plan: Plan
    rows: dict[str, list[dict[str, Any]]]
    facts: dict[str, Any]

    def scores(self, key: str, column: str) -> list[float]:
        """Percent of right answers in a column, for each seed of a row."""
        names = self.plan.exam.tasks[column]
        return [100 * mean_score(found["marks"], names) for found in self.rows[key]]

    def gap(self, better: str, worse: str, column: str) -> float:
        """Points between the means of two rows that were run."""
        return mean(self.scores(better, column)) - mean(self.scores(worse, column))

    @property
    def references(self) -> list[str]:
        """Rows that learn nothing, for comparison in every table."""
        return [key for key, row in self.plan.rows.items() if not row.stages]


def gather(plan: Plan, runs: Path, docs: Path, commit: str | None = None) -> None:
    """Write what is there; nothing where no row was run, so that an older file stays."""
    found = [result for row in rows_of(plan) if (result := row.result(runs)) is not None]
    if not found:
        return
    drawn = json.loads((runs / "data" / INDEX).read_text())["num_steps"]
    facts = {"commit": commit, "torch": torch.__version__, "drawn_steps": drawn}
    docs.mkdir(parents=True, exist_ok=True)
    with atomic_write(docs / FILE) as path:
        rows = ",\n".join(json.dumps(result) for result in found)
        path.write_text(f'{{"facts": {json.dumps(facts)},\n"rows": [\n{rows}\n]}}\n')


def read_results(plan: Plan, docs: Path) -> Results:
    """What `gather` wrote; rows of which there is nothing are empty."""
    path = docs / FILE
    found = json.loads(path.read_text()) if path.exists() else {"facts": {}, "rows": []}
    rows: dict[str, list[dict[str, Any]]] = {key: [] for key in plan.rows}
    for result in found["rows"]:
        if result["row"] in rows:
            rows[result["row"]].append(result)
    return Results(plan, rows, found["facts"])
