"""What `builtin.sinks` measured, as one figure: recall and perplexity by the length of a stream."""

from pathlib import Path
from typing import Any

PANELS = {"first sign": "first sign, % right", "keyed sign": "keyed sign, % right"}
PERPLEXITY = "perplexity of the true answers"


def draw(found: dict[str, Any], out: Path) -> None:
    """A panel for each question and one for perplexity; nothing without matplotlib or results.

    A line for each variant of attention; solid the mean of its seeds, dashed the shipped weights.
    """
    try:
        import matplotlib
    except ImportError:  # a figure is a convenience
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in found["rows"] if row.get("by_length")]
    if not rows:
        return
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    for name, style, group in _groups(rows):
        frames = [line["frames"] for line in group[0]["by_length"]]
        for panel, task in zip(axes, (*PANELS, "perplexity"), strict=True):
            scale = 1 if task == "perplexity" else 100
            values = [
                [scale * row["by_length"][place][task] for row in group] for place in range(len(frames))
            ]
            means = [sum(each) / len(each) for each in values]
            (line,) = panel.plot(frames, means, style, marker="o", label=name)
            ends = [min(each) for each in values], [max(each) for each in values]
            panel.fill_between(frames, *ends, alpha=0.15, color=line.get_color())
    for panel, title in zip(axes, (*PANELS.values(), PERPLEXITY), strict=True):
        panel.set(title=title, xlabel="frames", xscale="log")
        panel.set_xticks(frames, [str(count) for count in frames], minor=False)
        panel.grid(alpha=0.3)
    axes[2].set_yscale("log")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    pyplot.close(figure)


def _groups(rows: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Name, line style and rows of each line of the figure."""
    found: dict[tuple[int, bool], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["sinks"], row["seed"] is None), []).append(row)
    return [
        (
            (f"{sinks} sinks, window {group[0]['window']}" if sinks else f"window {group[0]['window']}")
            + (", shipped weights" if is_shipped else f", {len(group)} seeds"),
            "--" if is_shipped else "-",
            group,
        )
        for (sinks, is_shipped), group in found.items()
    ]
