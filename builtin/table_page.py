"""docs/tables.md: one table each, from the results of the rows that were run; the others say "not run"."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from builtin.table_data import INDEX
from builtin.table_exam import mean_score
from builtin.table_plan import ORDER, Plan, Row, TablePlan
from builtin.table_recall import recall_lines

NOT_RUN = "not run"
Results = dict[str, list[dict[str, Any]]]


def results_of(plan: Plan, runs: Path) -> Results:
    """What came of every row, by key: one entry a seed that was run to its end."""
    found: Results = {key: [] for key in plan.rows}
    for key, row in plan.rows.items():
        results = (Row(key, seed, row).result(runs) for seed in row.seeds)
        found[key] = [result for result in results if result is not None]
    return found


def write_page(plan: Plan, runs: Path, docs: Path) -> Path:
    """The page, whatever was run."""
    results = results_of(plan, runs)
    lines = [plan.opening, *_facts(plan, runs, results)]
    for name, table in plan.tables.items():
        lines += ["", f"## {table.title}", "", *table_lines(plan, table, results), ""]
        lines += [f"![{table.title}](tables-{name}.png)", "", *verdict(plan, table, results)]
    lines += ["", *recall_lines(Path(plan.recall))]
    path = docs / "tables.md"
    docs.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def _facts(plan: Plan, runs: Path, results: Results) -> list[str]:
    """Hardware, data and time of what was run."""
    every = [result for found in results.values() for result in found]
    if not every:
        return [f"Rows: {NOT_RUN}."]
    pictures = sum(draw.num_pictures for draw in plan.data.draws)
    drawn = json.loads((runs / "data" / INDEX).read_text())["num_steps"]
    taught = [result for result in every if result["steps"]]
    parts = [
        f"Hardware: {', '.join(sorted({result['hardware'] for result in every}))}; rows ran side by side."
    ]
    if taught:
        steps = max(sum(result["steps"].values()) for result in taught)
        minutes = [result["minutes"] for result in taught]
        parts += [f"Steps of a full row: {steps}, of {pictures} pictures each, from {drawn} drawn steps."]
        parts += [f"Minutes of training a row, beside the others: {min(minutes)} to {max(minutes)}."]
    parts += [f"Questions: {plan.exam.num_samples} of each task; short tasks are {_short(plan)} tasks."]
    return [" ".join(parts)]


def _short(plan: Plan) -> int:
    return max(map(len, plan.exam.tasks.values()))


def table_lines(plan: Plan, table: TablePlan, results: Results) -> list[str]:
    """The table in Markdown; means over seeds, each seed's number behind them."""
    columns = list(plan.exam.tasks)
    heads = ["row", "weights: decoder / trained last", "seeds", "steps 1a + 1b + 2", "minutes", *columns]
    heads += ["paper's average"] if table.paper else []
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for key in [*_references(plan, table), *table.rows]:
        cells = [plan.rows[key].name, *_run_cells(results[key])]
        cells += [_scores(plan, results[key], column) for column in columns]
        cells += [str(table.paper.get(key, ""))] if table.paper else []
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _references(plan: Plan, table: TablePlan) -> list[str]:
    """Rows that learn nothing stand above every table."""
    return [key for key, row in plan.rows.items() if not row.stages and key not in table.rows]


def _run_cells(found: Sequence[dict[str, Any]]) -> list[str]:
    if not found:
        return ["", "", "", NOT_RUN]
    first = found[0]
    steps = " + ".join(str(first["steps"].get(stage, 0)) for stage in ORDER)
    last = list(first["steps"])[-1:]
    trained = f"{first['trained'][last[0]] / 1e6:.2f} M" if last else "0"
    minutes = f"{mean(result['minutes'] for result in found):.1f}"
    seeds = str(len(found)) if first["steps"] else "none"
    return [f"{first['decoder'] / 1e6:.2f} M / {trained}", seeds, steps, minutes]


def _scores(plan: Plan, found: Sequence[dict[str, Any]], column: str) -> str:
    """`83.0 (82.1, 83.9)`: percent, the mean over seeds and each seed."""
    if not found:
        return NOT_RUN
    scores = [score(plan, result, column) for result in found]
    each = f" ({', '.join(f'{value:.1f}' for value in scores)})" if len(scores) > 1 else ""
    return f"{mean(scores):.1f}{each}"


def score(plan: Plan, result: dict[str, Any], column: str) -> float:
    """Percent of right answers in a column."""
    return 100 * mean_score(result["marks"], plan.exam.tasks[column])


def verdict(plan: Plan, table: TablePlan, results: Results) -> list[str]:
    """The note, and for each pair of the paper's order what was found."""
    lines = [table.note, ""] if table.note else []
    for better, worse in table.order:
        names = f"{plan.rows[better].name} over {plan.rows[worse].name}"
        if not results[better] or not results[worse]:
            lines.append(f"- {names}: {NOT_RUN}.")
            continue
        gaps = {column: _gap(plan, results, better, worse, column) for column in plan.exam.tasks}
        told = ", ".join(f"{column} {gap:+.1f}" for column, gap in gaps.items())
        held = sum(gap > 0 for gap in gaps.values())
        lines.append(f"- {names}: the paper's order in {held} of {len(gaps)} columns. Points: {told}.")
    return lines


def _gap(plan: Plan, results: Results, better: str, worse: str, column: str) -> float:
    one, other = ([score(plan, result, column) for result in results[key]] for key in (better, worse))
    return mean(one) - mean(other)
