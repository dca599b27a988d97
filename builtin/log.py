"""What a run writes about itself: one JSON object a line, and curves."""

import json
import time
from pathlib import Path
from typing import Any

import torch


class Log:
    """Gathers what steps measure, and writes means without making each step wait for the device."""

    def __init__(self, path: Path):
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._measured: dict[str, list[Any]] = {}
        self._since = time.perf_counter()

    def measure(self, values: dict[str, Any]) -> None:
        """Numbers or scalar tensors of one step."""
        for name, value in values.items():
            self._measured.setdefault(name, []).append(value.detach() if torch.is_tensor(value) else value)

    def write(self, **facts: Any) -> None:
        """A line with the given facts, the means since the last line, and rates per second."""
        means = {name: _mean(values) for name, values in self._measured.items()}
        now = time.perf_counter()
        passed = max(now - self._since, 1e-9)
        rates = {
            f"{name}_per_second": round(sum(self._measured.get(name, [])) / passed)
            for name in ("pictures", "tokens")
        }
        steps = len(next(iter(self._measured.values()), []))
        line = {**facts, **means, **rates, "steps_per_second": round(steps / passed, 2)}
        self._measured, self._since = {}, now
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def _mean(values: list[Any]) -> float:
    total = (
        torch.stack(values).float().mean().item() if torch.is_tensor(values[0]) else sum(values) / len(values)
    )
    return float(f"{total:.5g}")


def draw_curves(log: Path, out: Path) -> None:
    """Loss curves of a log as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for name in (
        "dense",
        "picture",
        "dialogue",
        "pair",
        "text",
        "stream4",
        "stream8",
        "stream16",
        "stream32",
        "stream64",
    ):
        points = [(line["seconds"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
    axes.set(xlabel="seconds of training", ylabel="loss", yscale="log")
    axes.legend(loc="upper right", ncols=2)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
