"""Draw the figure of the README from recorded measurements: python benchmarks/readme_figure.py

Reads benchmarks/h200.jsonl and benchmarks/builtin.jsonl.
Writes docs/overview-light.png and docs/overview-dark.png.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "59ad61f"  # measured both models in one run
MOST_FRAMES = 1600  # where the Transformer's lines end
OURS, TRANSFORMER = "infinitevl", "transformer eager"
THEMES = {
    "light": {
        "ground": "#ffffff",
        "text": "#1f2328",
        "grid": "#d8dee4",
        "ours": "#0b7a55",
        "other": "#c4512d",
    },
    "dark": {
        "ground": "#0d1117",
        "text": "#e6edf3",
        "grid": "#30363d",
        "ours": "#3fb68b",
        "other": "#f0883e",
    },
}
STYLE = {"linewidth": 2.2, "markersize": 5}
Points = list[tuple[float, float]]


def main() -> None:
    frames = _lines("h200.jsonl")
    recall = _lines("builtin.jsonl")
    for theme, colours in THEMES.items():
        text = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), colours["text"])
        ground = {"figure.facecolor": colours["ground"], "axes.facecolor": colours["ground"]}
        with pyplot.rc_context(text | ground | {"font.size": 12, "axes.edgecolor": colours["grid"]}):
            figure = _draw(frames, recall, colours)
            figure.savefig(ROOT / "docs" / f"overview-{theme}.png", dpi=150)
            pyplot.close(figure)


def stream_points(lines: list[dict[str, Any]], who: str, what: str, scale: float) -> Points:
    """(frames seen, value / scale) of one model's stream, in the order of frames."""
    found = [
        (line["settings"]["frames_seen"], line["value"] / scale)
        for line in lines
        if (line["benchmark"], line["what"], line["commit"]) == ("stream", what, COMMIT)
        and (line["settings"]["who"], line["settings"]["mode"]) == (who, "image")
    ]
    return sorted({seen: value for seen, value in reversed(found) if seen <= MOST_FRAMES}.items())


def recall_points(lines: list[dict[str, Any]], model: str) -> Points:
    """(frames of the stream, % of first signs named) of one model, test split."""
    return [
        (line["frames"], 100 * line["scores"]["first sign"])
        for line in lines
        if (line["benchmark"], line.get("model")) == ("builtin.recall", model)
    ]


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROOT / "benchmarks" / name).read_text().splitlines()]


def _draw(frames: list[dict[str, Any]], recall: list[dict[str, Any]], colours: dict[str, str]) -> Any:
    figure, panels = pyplot.subplots(1, 3, figsize=(11.6, 3.5), layout="constrained")
    for panel, what, scale, title, unit in (
        (panels[0], "frame", 1.0, "Milliseconds per frame", "ms"),
        (panels[1], "memory", 1e9, "GPU memory, GB", "GB"),
    ):
        other = stream_points(frames, TRANSFORMER, what, scale)
        ours = stream_points(frames, OURS, what, scale)
        _pair(panel, other, "Transformer, eager", ours, "InfiniteVL", colours)
        last, top = ours[-1][1], 1.1 * other[-1][1]
        label = {"color": colours["ours"], "ha": "right", "va": "bottom", "fontweight": "bold"}
        panel.text(MOST_FRAMES, last + 0.03 * top, f"{last:.0f} {unit}", **label)
        panel.set(title=title, xlim=(0, 1660), ylim=(0, top), xticks=(0, 400, 800, 1200, 1600))
    panel = panels[2]
    window, built_in = recall_points(recall, "window only"), recall_points(recall, "stage 3")
    _pair(panel, window, "Window attention alone", built_in, "Built-in model", colours)
    panel.set(
        title="First sign remembered, %", xscale="log", ylim=(-4, 105), xticks=[at for at, _ in built_in]
    )
    panel.set_xticklabels(["8", "64", "256", "1 K", "10 K"])
    panel.minorticks_off()
    for panel in panels:
        panel.set_xlabel("frames watched")
        panel.grid(color=colours["grid"], linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(length=0)
        panel.title.set_fontweight("bold")
    panels[2].set_xlabel("frames watched (log scale)")
    panels[0].legend(frameon=False, loc="upper left")
    panels[2].legend(frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.45))
    return figure


def _pair(
    panel: Any, other: Points, other_name: str, ours: Points, our_name: str, colours: dict[str, str]
) -> None:
    """Two lines: what is compared with in one colour, ours in another."""
    panel.plot(*zip(*other, strict=True), marker="s", color=colours["other"], label=other_name, **STYLE)
    panel.plot(*zip(*ours, strict=True), marker="o", color=colours["ours"], label=our_name, **STYLE)


if __name__ == "__main__":
    main()
