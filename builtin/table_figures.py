"""Figures of the tables: bars for means, dots for seeds, and what was not run by name."""

from pathlib import Path
from statistics import mean
from typing import Any

from builtin.table_page import NOT_RUN, Results, results_of, score
from builtin.table_plan import Plan, TablePlan
from builtin.table_recall import draw_recall


def draw_figures(plan: Plan, runs: Path, docs: Path) -> list[Path]:
    """One PNG for each table, and those of recall where it was measured."""
    import matplotlib

    matplotlib.use("Agg")
    results = results_of(plan, runs)
    paths = [draw_bars(plan, name, results, docs) for name in plan.tables]
    return paths + draw_recall(Path(plan.recall), docs)


def draw_bars(plan: Plan, name: str, results: Results, docs: Path) -> Path:
    """A group of bars for each column, one bar for each row of the table."""
    from matplotlib import pyplot

    table, columns = plan.tables[name], list(plan.exam.tasks)
    figure, axes = pyplot.subplots(figsize=(11, 4.8))
    width = 0.84 / len(table.rows)
    for number, key in enumerate(table.rows):
        places = [column + width * (number - (len(table.rows) - 1) / 2) for column in range(len(columns))]
        _bar(axes, plan, key, results[key], places, width)
    for key in (key for key, row in plan.rows.items() if not row.stages):
        for result in results[key]:
            _mark_reference(axes, plan, key, result)
    axes.set_xticks(range(len(columns)), columns)
    axes.set(ylabel="right answers, %", ylim=(0, 105), title=table.title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    figure.text(0.01, 0.01, caption(table, results), fontsize=7, color="0.35")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    path = docs / f"tables-{name}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _bar(axes: Any, plan: Plan, key: str, found: list[dict], places: list[float], width: float) -> None:
    columns, label = list(plan.exam.tasks), plan.rows[key].name
    if not found:
        axes.bar(places, [0] * len(places), width, label=f"{label}: {NOT_RUN}")
        for place in places:
            axes.text(place, 2, NOT_RUN, rotation=90, ha="center", fontsize=7, color="0.4")
        return
    scores = [[score(plan, result, column) for result in found] for column in columns]
    axes.bar(places, [mean(each) for each in scores], width, label=label)
    for place, each in zip(places, scores, strict=True):
        axes.plot([place] * len(each), each, ".", color="black", markersize=4)


def _mark_reference(axes: Any, plan: Plan, key: str, result: dict) -> None:
    """A row that learnt nothing as a dash over each group."""
    label: str | None = plan.rows[key].name
    for number, column in enumerate(plan.exam.tasks):
        height = score(plan, result, column)
        axes.plot([number - 0.45, number + 0.45], [height] * 2, "--", color="0.3", linewidth=1, label=label)
        label = None


def caption(table: TablePlan, results: Results) -> str:
    """Steps, seeds, minutes and hardware of what was run."""
    found = [result for key in table.rows for result in results[key]]
    if not found:
        return NOT_RUN
    steps = sorted({sum(result["steps"].values()) for result in found})
    seeds = "; ".join(f"{key}: {len(results[key]) or NOT_RUN}" for key in table.rows)
    minutes = [result["minutes"] for result in found]
    hardware = ", ".join(sorted({result["hardware"] for result in found}))
    took = f"{min(minutes)} to {max(minutes)} minutes a row, side by side on one {hardware}"
    return f"steps {' or '.join(map(str, steps))} a row · seeds {seeds} · {took} · validation split"
