"""docs/tables.md: one table each, from the rows that were run; the others say "not run"."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from builtin.table_plan import ORDER, TablePlan
from builtin.table_recall import recall_lines
from builtin.table_results import NOT_RUN, Results

_EQUAL = 1e-9  # points: means of equal scores differ by rounding
_WIDTH = 118


def write_page(results: Results, docs: Path) -> Path:
    """The page, whatever was run."""
    plan = results.plan
    lines = [plan.opening, *_wrapped(_facts(results))]
    for name, table in plan.tables.items():
        lines += ["", f"## {table.title}", "", *table_lines(table, results), ""]
        lines += [f"![{table.title}](tables-{name}.png)", "", *verdict(table, results)]
    lines += ["", *recall_lines(docs)]
    path = docs / "tables.md"
    docs.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def _facts(results: Results) -> str:
    """Hardware, data and time of what was run."""
    every = [result for found in results.rows.values() for result in found]
    taught = [result for result in every if result["steps"]]
    if not taught:
        return f"Rows: {NOT_RUN}."
    data = results.plan.data
    steps = max(sum(result["steps"].values()) for result in taught)
    minutes = [result["minutes"] for result in taught]
    pictures = sum(draw.num_pictures for draw in data.draws)
    drawn, version, commit = (results.facts[key] for key in ("drawn_steps", "torch", "commit"))
    return (
        f"{', '.join(sorted({result['hardware'] for result in every}))}; torch {version}, commit {commit}. "
        f"{len(taught)} rows were trained, side by side. A full row took {steps} steps of {pictures} "
        f"pictures; {drawn} steps were drawn. Training took {min(minutes):.1f} to {max(minutes):.1f} minutes "
        "a row. Cells are percent: the mean over seeds, and each seed. Heads say of how many questions for "
        "each seed."
    )


def table_lines(table: TablePlan, results: Results) -> list[str]:
    """The table in Markdown; means over seeds, each seed's number behind them."""
    plan = results.plan
    columns = {name: plan.exam.num_samples * len(tasks) for name, tasks in plan.exam.tasks.items()}
    heads = ["row", "decoder / trained in the last stage", "seeds", "steps 1a + 1b + 2", "minutes"]
    heads += [f"{name} (of {count})" for name, count in columns.items()]
    heads += ["paper's average"] if table.paper else []
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for key in [*results.references, *table.rows]:
        cells = [plan.rows[key].name, *_run_cells(results.rows[key])]
        cells += [_scores(results.scores(key, column)) for column in columns]
        cells += [str(table.paper.get(key, ""))] if table.paper else []
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _run_cells(found: Sequence[dict[str, Any]]) -> list[str]:
    """Sizes, seeds, steps and minutes of a row."""
    if not found:
        return ["", "", "", NOT_RUN]
    first = found[0]
    size = f"{first['decoder'] / 1e6:.2f} M"
    if not first["steps"]:
        return [f"{size} / none", "", "", ""]
    steps = " + ".join(str(first["steps"].get(stage, 0)) for stage in ORDER)
    trained = first["trained"][list(first["steps"])[-1]]
    minutes = mean(result["minutes"] for result in found)
    return [f"{size} / {trained / 1e6:.2f} M", str(len(found)), steps, f"{minutes:.1f}"]


def _scores(scores: list[float]) -> str:
    """`83.0 (82.1, 83.9)`."""
    if not scores:
        return NOT_RUN
    each = f" ({', '.join(f'{value:.1f}' for value in scores)})" if len(scores) > 1 else ""
    return f"{mean(scores):.1f}{each}"


def verdict(table: TablePlan, results: Results) -> list[str]:
    """The note, and for each pair of the paper's order what was found."""
    lines = [*_wrapped(table.note), ""] if table.note else []
    for better, worse in table.order:
        names = f"- {results.plan.rows[better].name} over {results.plan.rows[worse].name}"
        if not results.rows[better] or not results.rows[worse]:
            lines.append(f"{names}: {NOT_RUN}")
            continue
        gaps = {column: results.gap(better, worse, column) for column in results.plan.exam.tasks}
        told = "; ".join(f"{column} {gap:+.1f}" for column, gap in gaps.items())
        held = sum(gap > _EQUAL for gap in gaps.values())
        told = f"{names}: the paper's order in {held} of {len(gaps)} columns (points: {told})"
        lines += textwrap.wrap(told, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_on_hyphens=False)
