"""Figures of the tables: bars for means, dots for seeds, and what was not run by name."""

from pathlib import Path
from statistics import mean
from typing import Any

from builtin.table_plan import TablePlan
from builtin.table_recall import draw_recall
from builtin.table_results import NOT_RUN, Results


def draw_figures(results: Results, docs: Path) -> list[Path]:
    """One PNG for each table, and those of recall where it was measured."""
    import matplotlib

    matplotlib.use("Agg")
    paths = [draw_bars(name, results, docs) for name in results.plan.tables]
    return paths + draw_recall(docs)


def draw_bars(name: str, results: Results, docs: Path) -> Path:
    """A group of bars for each column, one bar for each row of the table."""
    from matplotlib import pyplot

    table, columns = results.plan.tables[name], list(results.plan.exam.tasks)
    figure, axes = pyplot.subplots(figsize=(11, 5))
    width = 0.84 / len(table.rows)
    for number, key in enumerate(table.rows):
        places = [column + width * (number - (len(table.rows) - 1) / 2) for column in range(len(columns))]
        _bars(axes, key, results, places, width)
    for key in results.references:
        _dashes(axes, key, results)
    axes.set_xticks(range(len(columns)), [column.replace(", ", ",\n") for column in columns])
    axes.set(ylabel="right answers, %", ylim=(0, 105), title=table.title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.text(0.01, 0.01, caption(table, results), fontsize=7, color="0.35")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    path = docs / f"tables-{name}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _bars(axes: Any, key: str, results: Results, places: list[float], width: float) -> None:
    """A row's means as bars with a dot for each seed, or the words that it was not run."""
    label = results.plan.rows[key].name
    if not results.rows[key]:
        axes.bar(places, [0] * len(places), width, label=f"{label}: {NOT_RUN}")
        for place in places:
            axes.text(place, 2, NOT_RUN, rotation=90, ha="center", fontsize=7, color="0.4")
        return
    scores = [results.scores(key, column) for column in results.plan.exam.tasks]
    axes.bar(places, [mean(each) for each in scores], width, label=label)
    for place, each in zip(places, scores, strict=True):
        axes.plot([place] * len(each), each, ".", color="black", markersize=4)


def _dashes(axes: Any, key: str, results: Results) -> None:
    """A row that learnt nothing as a dash over each group."""
    label: str | None = results.plan.rows[key].name
    for number, column in enumerate(results.plan.exam.tasks):
        for height in results.scores(key, column):
            ends = [number - 0.45, number + 0.45]
            axes.plot(ends, [height] * 2, "--", color="0.3", linewidth=1, label=label)
            label = None


def caption(table: TablePlan, results: Results) -> str:
    """Steps, seeds, minutes and hardware of what was run."""
    found = [result for key in table.rows for result in results.rows[key]]
    if not found:
        return NOT_RUN
    steps = " or ".join(map(str, sorted({sum(result["steps"].values()) for result in found})))
    seeds = ", ".join(f"{key} {len(results.rows[key]) or NOT_RUN}" for key in table.rows)
    minutes = [result["minutes"] for result in found]
    took = (
        f"{min(minutes):.1f} to {max(minutes):.1f} minutes a row, side by side on one {found[0]['hardware']}"
    )
    return f"steps {steps} a row · seeds: {seeds} · {took} · validation split"
