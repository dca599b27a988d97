"""Recall against the length of a stream, and the norm of the delta memory: what builtin.recall measured."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = "recall.json"
NOT_RUN = "not run"
RECALL_FIGURE, NORM_FIGURE = "tables-recall.png", "tables-memory.png"


def gather_recall(folder: Path, docs: Path) -> None:
    """Take the numbers of builtin.recall beside the page; where there are none, older ones
    stay."""
    if (folder / FILE).exists():
        docs.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / FILE, docs / FILE)


def read_recall(docs: Path) -> dict[str, Any] | None:
    """What was measured, or None."""
    path = docs / FILE
    return json.loads(path.read_text()) if path.exists() else None


def recall_lines(docs: Path) -> list[str]:
    """The page's part about long streams."""
    found = read_recall(docs)
    lines = ["## Recall against the length of a stream", ""]
    if found is None:
        return [*lines, NOT_RUN, "", "## Norm of the delta memory over a long stream", "", NOT_RUN]
    lines += [_setting(found), ""]
    for task in _tasks(found):
        told = _told_score(task)
        lines += _table(found, f"{task}: % right (of streams)", told)
    lines += _table(found, "MB that a stream keeps", lambda row: f"{row['state_bytes'] / 1e6:.2f}")
    lines += [f"![Recall against the length of a stream]({RECALL_FIGURE})", ""]
    lines += ["## Norm of the delta memory over a long stream", ""]
    lines += [f"![Norm of the delta memory]({NORM_FIGURE})" if _normed(found) else NOT_RUN]
    return lines


def _told_score(task: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{100 * row['scores'][task]:.1f} ({row['streams']})"


def _setting(found: dict[str, Any]) -> str:
    where = found.get("hardware", found["device"])
    return (
        f"{found['split']} split, {where}; streams of two frames a second with 2 to 8 signs, the others "
        f"from a pool of {found['pool']} pictures; of the built-in models, not of the rows above."
    )


def _table(found: dict[str, Any], head: str, told: Callable[[dict[str, Any]], str]) -> list[str]:
    """Models down, lengths across; what was not run says so, with the reason."""
    lengths = sorted({row["frames"] for row in found["results"]})
    rows = {(row["model"], row["frames"]): row for row in found["results"]}
    lines = [f"| {head} | " + " | ".join(f"{length} frames" for length in lengths) + " |"]
    lines += ["|" + "---|" * (len(lengths) + 1)]
    for model in _models(found):
        cells = [_cell(rows.get((model, length)), told) for length in lengths]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(row: dict[str, Any] | None, told: Callable[[dict[str, Any]], str]) -> str:
    if row is None:
        return NOT_RUN
    return told(row) if "scores" in row else f"{NOT_RUN}: {row.get('not_run', 'no reason given')}"


def draw_recall(docs: Path) -> list[Path]:
    """The figures of what was measured, as PNGs."""
    found = read_recall(docs)
    if found is None:
        return []
    paths = [_draw_lengths(found, docs / RECALL_FIGURE)]
    return paths + ([_draw_norms(found, docs / NORM_FIGURE)] if _normed(found) else [])


def _draw_lengths(found: dict[str, Any], path: Path) -> Path:
    """A panel for each question, and one for memory."""
    from matplotlib import pyplot

    tasks = _tasks(found)
    figure, panels = pyplot.subplots(1, len(tasks) + 1, figsize=(4.2 * (len(tasks) + 1), 4.2))
    for panel, task in zip(panels, tasks, strict=False):
        _draw_lines(panel, found, lambda row, task=task: 100 * row["scores"][task])
        panel.set(title=f"{task}, % right", ylim=(-3, 103))
    _draw_lines(panels[-1], found, lambda row: row["state_bytes"] / 1e6)
    panels[-1].set(title="MB that a stream keeps", yscale="log")
    panels[0].legend(fontsize=8)
    return _save(figure, found, path)


def _draw_lines(panel: Any, found: dict[str, Any], height: Callable[[dict[str, Any]], float]) -> None:
    for model in _models(found):
        rows = [row for row in found["results"] if row["model"] == model and "scores" in row]
        if rows:
            panel.plot([row["frames"] for row in rows], [height(row) for row in rows], "o-", label=model)
    panel.set(xlabel="frames", xscale="log")
    panel.grid(alpha=0.3)


def _draw_norms(found: dict[str, Any], path: Path) -> Path:
    """A panel for each model with memories: a line for each layer, over its longest stream."""
    from matplotlib import pyplot

    normed = _normed(found)
    figure, panels = pyplot.subplots(1, len(normed), figsize=(5.5 * len(normed), 4.4), squeeze=False)
    for panel, (model, norms) in zip(panels[0], normed.items(), strict=True):
        frames = [at for at, _ in norms]
        for number in range(len(norms[0][1])):
            panel.plot(frames, [each[number] for _, each in norms], label=f"delta layer {number + 1}")
        panel.set(title=f"{model}: norm of the memory", xlabel="frames", xscale="log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    return _save(figure, found, path)


def _save(figure: Any, found: dict[str, Any], path: Path) -> Path:
    from matplotlib import pyplot

    figure.text(0.01, 0.01, _setting(found), fontsize=7, color="0.35")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path


def _models(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in found["results"]))


def _tasks(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(task for row in found["results"] for task in row.get("scores", ())))


def _normed(found: dict[str, Any]) -> dict[str, list[tuple[int, list[float]]]]:
    """Frames and norms of each model's longest stream."""
    rows = sorted((row for row in found["results"] if row.get("norms")), key=lambda row: row["frames"])
    return {row["model"]: row["norms"] for row in rows}
