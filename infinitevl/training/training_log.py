"""Writes the log of a run: one JSON object a line, the same on boards, and a plot of the loss."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.tracking import GeneralTracker

from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write
from infinitevl.training.boards import open_board
from infinitevl.training.flops import nominal_peak
from infinitevl.training.progress import Progress

LOG = "log.jsonl"  # in the folder of a run


class TrainingLog:
    """Writes the log of a run. A resumed run drops the lines of steps that it repeats.

    Args:
        num_processes: whose work together a line speaks of. log_to: names of boards that show it too.
    """

    def __init__(self, path: Path, writes: bool = True, num_processes: int = 1, log_to: Sequence[str] = ()):
        self.path, self.writes, self.log_to = path, writes, log_to
        self.boards: list[GeneralTracker] = []
        self.progress = Progress()
        self._since = time.perf_counter()
        self._step, self._num_steps, self._tokens, self._flops = 0, 0, 0, 0.0
        self.total_tokens: int | None = 0  # of the whole run; None after a checkpoint that does not say
        self._peak = num_processes * (nominal_peak(_gpu()) or 0.0)

    def start(self, step: int, num_steps: int) -> None:
        """Starts, or continues after `step` steps. Raises InputError for a board that cannot open."""
        self._since, self._step, self._num_steps = time.perf_counter(), step, num_steps
        self._tokens, self._flops = 0, 0.0
        if self.writes:
            kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= step]
            with atomic_write(self.path) as path:
                path.write_text("".join(f"{line}\n" for line in kept))
            self.boards = [open_board(name, self.path.parent, step) for name in self.log_to]

    def add(self, tokens: int, flops: float) -> None:
        """Counts the work of one step; a line shows the pace since the line before."""
        self._tokens += tokens
        if self.total_tokens is not None:
            self.total_tokens += tokens
        self._flops += flops

    def write(self, step: int, facts: dict[str, float]) -> None:
        """Writes a line, also to the screen: the facts, the pace and the time that is left."""
        line = {"step": step, "num_steps": self._num_steps, **facts}
        if self.total_tokens is not None:
            line["total_tokens"] = self.total_tokens
        line |= self._pace(step)
        if self.writes:
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise InfiniteVLError(f"could not write {self.path}: {error.strerror or error}.") from error
            self.progress.show(line)
        for board in self.boards:
            board.log({name: value for name, value in line.items() if name != "step"}, step=step)

    def _pace(self, step: int) -> dict[str, float]:
        """Returns tokens a second, share of the nominal peak (if known), seconds left, memory."""
        now = time.perf_counter()
        passed, done = max(now - self._since, 1e-9), max(step - self._step, 1)
        pace: dict[str, float] = {"tokens_per_second": round(self._tokens / passed)}
        if self._peak and self._flops:
            pace["mfu"] = round(self._flops / passed / self._peak, 4)
        pace["seconds_left"] = round(passed / done * (self._num_steps - step), 1)
        if torch.cuda.is_available():
            pace["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        self._since, self._step, self._tokens, self._flops = now, step, 0, 0.0
        return pace

    def close(self) -> None:
        """Completes and closes the boards."""
        for board in self.boards:
            board.finish()
        self.boards = []


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def losses(path: Path) -> list[tuple[int, float]]:
    """Reads step and loss of every line of a log."""
    found = [json.loads(line) for line in _lines(path)]
    return [(line["step"], line["loss"]) for line in found]


def draw_loss(log: Path, out: Path, title: str) -> None:
    """Plots the loss over the steps as a PNG."""
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
    """Reads the whole lines; what a killed run or a broken disk left of others is not the log's."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(errors="replace").splitlines() if _is_whole(line)]


def _is_whole(line: str) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("step"), int) and "loss" in found
