"""Draw two figures from measured lines: time per token by context, speed and memory by frames seen."""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from infinitevl.bench.record import EAGER, GRAPHED, OURS, Record, read_records
from infinitevl.errors import InputError
from infinitevl.files import atomic_write

_STYLES = {
    OURS: {"color": "#0b6e4f", "marker": "o", "label": "InfiniteVL"},
    EAGER: {"color": "#c8553d", "marker": "s", "label": "Transformer, eager"},
    GRAPHED: {"color": "#e0a458", "marker": "^", "label": "Transformer, CUDA graph"},
}
_TIMES = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]  # ms
_CLOSEST = 0.35  # doublings between two places that can both have a label
_GRID = {"color": "#dddddd", "linewidth": 0.6}
Points = list[tuple[float, Record]]


def draw(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[Path]:
    """Draw the figures for which a file has enough lines, as PNG into `folder`.

    If a file holds several sizes or devices, those of its last line are drawn. Of two lines about the same
    point the later one counts.

    Raises:
        InputError: no matplotlib, no such file, or nothing in it to draw.
        InfiniteVLError: the figures cannot be written.
    """
    pyplot = _pyplot()
    written = []
    for name, choose, figure in (
        ("decode.png", token_lines, token_figure),
        ("stream.png", frame_lines, frame_figure),
    ):
        records = choose(read_records(path))
        if records:
            written.append(_save(pyplot, figure(pyplot, records), Path(folder) / name))
    if not written:
        raise InputError(
            f"{path} holds nothing to draw. Measure first: infinitevl bench decode --out {path}, "
            f"infinitevl bench stream --out {path}."
        )
    return written


def token_lines(records: Iterable[Record]) -> list[Record]:
    """The times per token of single answers, on one device."""
    return _of_one_place(
        record
        for record in records
        if (record.benchmark, record.what) == ("decode", "token") and record.settings["answers"] == 1
    )


def frame_lines(records: Iterable[Record]) -> list[Record]:
    """Times and memory of a stream on one device; image mode if there is also video mode."""
    found = _of_one_place(
        record for record in records if record.benchmark == "stream" and record.what in ("frame", "memory")
    )
    return [record for record in found if record.settings["mode"] == "image"] or found


def token_figure(pyplot: Any, records: Sequence[Record]) -> Any:
    """Draw milliseconds per token over the context before it."""
    figure, axes = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
    _lines(axes, records, "context", lambda record: record.value, spread=True)
    axes.set_yscale("log")
    axes.set(xlabel="context, tokens", ylabel="ms per decoded token")
    _finish(axes, records, "context")
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in _TIMES if low <= tick <= high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(frameon=False)
    figure.suptitle(_title("One decoded token", records), fontsize=11)
    return figure


def frame_figure(pyplot: Any, records: Sequence[Record]) -> Any:
    """Draw frames per second above and gigabytes below, over the frames seen before."""
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    times = [record for record in records if record.what == "frame"]
    memory = [record for record in records if record.what == "memory"]
    _lines(above, times, "frames_seen", lambda record: 1e3 / record.value)
    _lines(below, memory, "frames_seen", lambda record: record.value / 1e9)
    above.set(ylabel="frames a second")
    below.set(xlabel="frames seen", ylabel="memory, GB")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        _finish(axes, records, "frames_seen")
    above.legend(frameon=False)
    figure.suptitle(_title("One stream", records), fontsize=11)
    return figure


def _lines(
    axes: Any, records: Sequence[Record], along: str, height: Callable[[Record], float], spread: bool = False
) -> None:
    """Draw one line for each model, and the middle 90 % around it."""
    for who, style in _STYLES.items():
        points = _points([record for record in records if record.who == who], along)
        if not points:
            continue
        places = [place for place, _ in points]
        axes.plot(places, [height(record) for _, record in points], markersize=4, linewidth=1.8, **style)
        if spread:
            low, high = ([(r.spread or (r.value, r.value))[side] for _, r in points] for side in (0, 1))
            axes.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _points(records: Sequence[Record], along: str) -> Points:
    """The latest record for each place, in order."""
    return sorted({record.settings[along]: record for record in records}.items())


def _finish(axes: Any, records: Sequence[Record], along: str) -> None:
    places = sorted({record.settings[along] for record in records})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, _labels(places))
    axes.tick_params(axis="x", labelrotation=30, labelsize=8)
    axes.minorticks_off()
    axes.grid(True, **_GRID)
    axes.spines[["top", "right"]].set_visible(False)


def _of_one_place(records: Iterable[Record]) -> list[Record]:
    found = list(records)
    found = [r for r in found if (r.size, r.device) == (found[-1].size, found[-1].device)]
    variant = _variant(found)
    return [r for r in found if r.who != OURS or _variant([r]) == variant]


def _variant(records: Sequence[Record]) -> str | None:
    """The variant of attention of our last line, where it was chosen."""
    return next((r.settings.get("attention_variant") for r in reversed(records) if r.who == OURS), None)


def _title(start: str, records: Sequence[Record]) -> str:
    last, commits = records[-1], ", ".join(dict.fromkeys(record.commit for record in records))
    variant = _variant(records)
    shape = f"{last.size} shape, {variant} attention" if variant else f"{last.size} shape"
    return f"{start}, {shape}, {last.settings['dtype']}, {last.device} ({commits})"


def _thousands(count: float) -> str:
    # Contexts come in powers of two, frames in round numbers.
    if count < 1024 or count % 1024:
        return f"{count:,}"
    return f"{count / 1024:.4g}K" if count < 1024**2 else f"{count / 1024**2:.4g}M"


def _labels(places: Sequence[float]) -> list[str]:
    """A label for each place; of two that would touch, only the later one is shown."""
    spaced = [math.log2(after / place) > _CLOSEST for place, after in itertools.pairwise(places)]
    return [_thousands(place) if show else "" for place, show in zip(places, [*spaced, True], strict=True)]


def _save(pyplot: Any, figure: Any, path: Path) -> Path:
    with atomic_write(path) as part:
        figure.savefig(part, dpi=150, format="png")
    pyplot.close(figure)
    return path


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("drawing needs matplotlib: pip install 'infinitevl[plot]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
