"""What `builtin.recall` measured, as one figure: recall, memory of a stream, norm of the delta memory."""

from pathlib import Path
from typing import Any

PANELS = ("first sign", "keyed sign", "last sign")


def draw(found: dict, out: Path) -> None:
    """A panel for each question, one for bytes a stream, one for norms; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:  # a figure is a convenience
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 5, figsize=(20, 4))
    names = list(dict.fromkeys(row["model"] for row in found["results"]))
    for panel, task in zip(axes, PANELS, strict=False):
        for name in names:
            rows = _rows(found, name)
            shares = [100 * row["scores"][task] for row in rows]
            panel.plot([row["frames"] for row in rows], shares, marker="o", label=name)
        panel.set(title=f"{task}, % right", xlabel="frames", xscale="log", ylim=(-3, 103))
    axes[0].legend()
    for name in names:
        rows = _rows(found, name)
        megabytes = [row["state_bytes"] / 1e6 for row in rows]
        axes[3].plot([row["frames"] for row in rows], megabytes, marker="o", label=name)
    axes[3].set(title="MB that a stream keeps", xlabel="frames", xscale="log", yscale="log")
    _draw_norms(axes[4], found, names)
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    pyplot.close(figure)


def _draw_norms(panel: Any, found: dict, names: list[str]) -> None:
    """Norm of the memory over the longest stream, mean over layers."""
    for name in names:
        rows = [row for row in _rows(found, name) if row["norms"]]
        if rows:
            norms = rows[-1]["norms"]
            panel.plot([at for at, _ in norms], [sum(each) / len(each) for _, each in norms], label=name)
    panel.set(title="norm of the delta memory, mean of layers", xlabel="frames", xscale="log")
    if panel.lines:
        panel.legend()


def _rows(found: dict, name: str) -> list[dict]:
    return [row for row in found["results"] if row["model"] == name and "scores" in row]
