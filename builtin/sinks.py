"""Sinks against a window alone: the built-in model with 16 sinks and a window of 48, and with a window of 64.

    python -m builtin.sinks --data .data --out runs/sinks         # within 9 minutes, on all GPUs there are
    python -m builtin.sinks --tiny --data .data --out runs/tiny   # a rehearsal, on a CPU
    python -m builtin.sinks --draw --out runs/sinks               # the table and the figure again

Both variants keep the same state. Both go on from the shipped stage-2 model, which learned with the window of
64, with stage 2 and then stage 3: the same batches, number of steps and rates, two seeds. Two more rows are
not trained: the shipped model as it is, and its weights with sinks. Every row is a process; rows share the
cards, and the slowest decides how many steps all take. Scores are of the validation split. Writes sinks.json,
sinks.md and sinks.png, and of every row a folder with its log, output.txt, and its models.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from builtin.command import command
from builtin.sinks_figure import draw
from builtin.sinks_row import PACE, PLAN, RESULT, Row, write
from infinitevl.errors import InputError
from infinitevl.model.attention_variants import SLIDING_WINDOW, STREAMING

SEEDS = (0, 1)
TRAINED = tuple(Row(attention, seed) for seed in SEEDS for attention in (SLIDING_WINDOW, STREAMING))
SHIPPED = (Row(SLIDING_WINDOW, None), Row(STREAMING, None))
SHARES = {"sft": 0.4, "long_sft": 0.6}  # of the time for training
SCORING, OPENING = 110.0, 50.0  # seconds for scores, and for opening two stages
_MARGIN = 0.9  # of the time that is left, after what cannot be foreseen
_ENV = {"OMP_NUM_THREADS": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
_LOOK_EVERY = 0.5  # seconds


@dataclass
class Started:
    """A row that runs."""

    row: Row
    process: subprocess.Popen[bytes]
    log: IO[str]


class Crew:
    """Rows as processes side by side. ends: seconds of `time.time` at which the call is over."""

    def __init__(self, given: argparse.Namespace, ends: float):
        self.given, self.ends, self.out = given, ends, given.out
        self.cards = torch.cuda.device_count()
        self.share = max(1, -(-len(TRAINED) // max(1, self.cards)))
        self.working: list[Started] = []

    def run(self) -> None:
        """Run all rows to their ends, or until the time is over; a row that failed ends the call.

        Raises:
            InputError: a row failed; its last lines say why.
        """
        try:
            for row in TRAINED:
                self._start(row)
            while not all((self.out / row.key / PACE).exists() for row in TRAINED):
                self._look()
            write(self.out / PLAN, self.plan())
            for row in SHIPPED:
                self._start(row)
            while self.working and time.time() < self.ends:
                self._look()
        finally:
            for started in self.working:
                started.process.terminate()
                started.process.wait()
                started.log.close()

    def plan(self) -> dict[str, int]:
        """How many steps every row takes in each stage: those for which the slowest has the time."""
        if self.given.tiny:
            return {"sft": 2, "long_sft": 2}
        paces = [json.loads((self.out / row.key / PACE).read_text()) for row in TRAINED]
        left = _MARGIN * (self.ends - time.time() - SCORING - OPENING)
        steps = {
            name: max(10, int(left * share / max(pace[name] for pace in paces)))
            for name, share in SHARES.items()
        }
        print(f"paces {paces}\n{left:.0f} s to train: {steps} steps", flush=True)
        return steps

    def _start(self, row: Row) -> None:
        folder = self.out / row.key
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PACE, RESULT):
            (folder / name).unlink(missing_ok=True)
        log = (folder / "output.txt").open("w")
        workers = max(0, (os.cpu_count() or 1) // len(TRAINED) - 1)
        words = ["--attention", row.attention, "--folder", self.out, "--data", self.given.data]
        words += ["--share", self.share, "--workers", 0 if self.given.tiny else workers]
        words += ["--samples", self.given.samples] + (["--tiny"] if self.given.tiny else [])
        words += [] if row.seed is None else ["--seed", row.seed]
        command = [sys.executable, "-m", "builtin.sinks_row", *map(str, words)]
        environment = {**_ENV, **os.environ}
        if self.cards:
            order = TRAINED.index(row) if row in TRAINED else SHIPPED.index(row)
            environment["CUDA_VISIBLE_DEVICES"] = str(order % self.cards)
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        self.working.append(Started(row, process, log))

    def _look(self) -> None:
        """Let go of rows that ended."""
        time.sleep(_LOOK_EVERY)
        for started in list(self.working):
            code = started.process.poll()
            if code is None:
                continue
            self.working.remove(started)
            started.log.close()
            print(f"{started.row.key}: {'done' if code == 0 else f'ended with {code}'}", flush=True)
            if code:
                told = (self.out / started.row.key / "output.txt").read_text()[-3000:]
                raise InputError(f"the row {started.row.key} failed:\n{told}")
        if time.time() > self.ends and not (self.out / PLAN).exists():
            raise InputError("the time is over before every row said how fast it is; give more minutes.")


def gather(out: Path) -> dict[str, Any]:
    """What all rows found, as JSON values; rows without a result are left out."""
    paths = [out / row.key / RESULT for row in (*SHIPPED, *TRAINED)]
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    facts = {"hardware": hardware, "cards": torch.cuda.device_count(), "torch": torch.__version__}
    return {**facts, "rows": [json.loads(path.read_text()) for path in paths if path.exists()]}


def table(found: dict[str, Any]) -> str:
    """The rows as a table in Markdown: percent of right answers."""
    lengths = [line["frames"] for line in found["rows"][0]["by_length"]] if found["rows"] else []
    heads = ["attention", "seed", "steps", "reading", "talk"]
    heads += [f"{task} {length}" for task in ("first", "keyed") for length in lengths]
    lines = [heads, ["---"] * len(heads)]
    for row in found["rows"]:
        sinks = (
            f"{row['sinks']} sinks + window {row['window']}" if row["sinks"] else f"window {row['window']}"
        )
        steps = row.get("steps")
        cells = [sinks, "shipped" if row["seed"] is None else str(row["seed"])]
        cells += [" + ".join(str(count) for count in steps.values()) if steps else "not trained"]
        cells += [percent(row[name]["score"]) if name in row else "" for name in ("reading", "talk")]
        for task in ("first sign", "keyed sign"):
            cells += [percent(line[task]) for line in row["by_length"]]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def percent(share: float) -> str:
    """A share of right answers."""
    return f"{100 * share:.1f}"


def tell(out: Path) -> None:
    """Write sinks.json, sinks.md and sinks.png, and print the table."""
    if (out / "sinks.json").exists() and not any((out / row.key).exists() for row in TRAINED):
        found = json.loads((out / "sinks.json").read_text())
    else:
        found = gather(out)
        write(out / "sinks.json", found)
    (out / "sinks.md").write_text(table(found))
    print(table(found), flush=True)
    draw(found, out / "sinks.png")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Sinks against a window alone, in the built-in model.")
    parser.add_argument("--data", type=Path, default=Path(".data"), help="folder of build_data")
    parser.add_argument("--out", type=Path, default=Path("runs/sinks"))
    parser.add_argument("--stop-after", type=float, default=9.0, help="minutes that this call may take")
    parser.add_argument("--samples", type=int, default=128, help="streams of each length")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny numbers")
    parser.add_argument("--draw", action="store_true", help="only write the table and the figure")
    given = parser.parse_args()
    ends = time.time() + 60 * given.stop_after
    if not given.draw:
        missing = [name for name in ("train.pack", "validation.pack") if not (given.data / name).is_file()]
        if missing:
            raise InputError(f"{given.data} lacks {', '.join(missing)}: python -m builtin.build_data")
        (given.out / PLAN).unlink(missing_ok=True)
        try:
            Crew(given, ends - 15).run()
        finally:  # what was found is told, whatever failed after it
            tell(given.out)
    else:
        tell(given.out)


if __name__ == "__main__":
    main()
