"""What a stage writes about itself: one JSON object a line, and its loss as a picture."""

import json
import time
from pathlib import Path
from typing import Any

import torch


class Journal:
    """Lines of a run; where a run goes on, lines of steps that are done again are dropped."""

    def __init__(self, path: Path, writes: bool = True):
        self.path, self.writes = path, writes
        self._since = time.perf_counter()
        self._step, self._num_steps = 0, 0

    def start(self, step: int, num_steps: int) -> None:
        """The run begins, or goes on, after `step` steps."""
        self._since, self._step, self._num_steps = time.perf_counter(), step, num_steps
        if self.writes:
            kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= step]
            self.path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, step: int, num_tokens: int, facts: dict[str, Any]) -> None:
        """A line, on the screen too: facts, the pace of the last step, and the time that is left."""
        now = time.perf_counter()
        passed, done = now - self._since, step - self._step
        self._since, self._step = now, step
        line: dict[str, Any] = {"step": step, "num_steps": self._num_steps, **facts, "tokens": num_tokens}
        line["tokens_per_second"] = round(num_tokens * done / max(passed, 1e-9))
        line["seconds_left"] = round(passed / max(done, 1) * (self._num_steps - step), 1)
        if torch.cuda.is_available():
            line["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        if self.writes:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def losses(path: Path) -> list[tuple[int, float]]:
    """Step and loss of every line of a log."""
    found = [json.loads(line) for line in _lines(path)]
    return [(line["step"], line["loss"]) for line in found]


def draw_loss(log: Path, out: Path, title: str) -> None:
    """The loss over the steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    points = losses(log)
    axes.plot([step for step, _ in points], [loss for _, loss in points], linewidth=1)
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def _lines(path: Path) -> list[str]:
    """Whole lines; the last one of a killed run may be cut."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines() if line.endswith("}")]
