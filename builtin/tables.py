"""The paper's tables at a small scale: students of one teacher, trained side by side on one card.

    python -m builtin.tables --tiny --folder runs/tiny --docs runs/tiny   # every part once, on a CPU
    python -m builtin.tables --stop-after 9             # draw data, train all rows, write docs/tables.md
    python -m builtin.tables --stop-after 9             # again: goes on with what is left
    python -m builtin.tables --only mixers --rows delta # some of it
    python -m builtin.tables --draw                     # only write the page from what was run

Wants a teacher (`builtin.train`), and the packs of `builtin.build_data`. Each row is a process with a folder
and a log of its own; all take the same number of steps, decided once from what the clock allows.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from builtin.table_data import is_stored, store_scenes
from builtin.table_exam import write_exam
from builtin.table_figures import draw_figures
from builtin.table_page import write_page
from builtin.table_plan import Plan, Row, fit_steps, read_plan, rows_of
from builtin.table_recall import gather_recall
from builtin.table_results import gather, read_results
from builtin.table_row import DATA, EXAM, PACE, STEPS
from builtin.table_tiny import write_tiny
from infinitevl.files import atomic_write
from infinitevl.training.teacher import load_teacher

_LOOK_EVERY = 0.5  # seconds
_ENV = {"OMP_NUM_THREADS": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


@dataclass
class Started:
    """A row that runs."""

    row: Row
    process: subprocess.Popen
    log: IO[str]
    card: str | None


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's tables at a small scale.")
    parser.add_argument("--plan", type=Path, default=Path("recipes/tables/small.yaml"))
    parser.add_argument("--folder", type=Path, default=Path("runs/tables"), help="of data, logs and results")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="of the page and its numbers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", help="these tables")
    parser.add_argument("--rows", nargs="*", help="these rows")
    parser.add_argument("--at-once", type=int, default=14, help="rows side by side")
    parser.add_argument("--cards", nargs="*", help="spread rows over these GPUs, by number")
    parser.add_argument("--steps", type=int, help="of every row, instead of what the clock allows")
    parser.add_argument("--stop-after", type=float, default=9.0, help="minutes after which this call ends")
    parser.add_argument("--tiny", action="store_true", help="a tiny teacher of random weights, a few steps")
    parser.add_argument("--draw", action="store_true", help="only write the page and the figures")
    parser.add_argument("--commit", help="of the code that runs, for the record")
    arguments = parser.parse_args()
    plan = read_plan(arguments.plan)
    if arguments.tiny:
        arguments.plan = write_tiny(plan, arguments.folder)
        plan = read_plan(arguments.plan)
    if not arguments.draw:
        run(plan, arguments)
    gather(plan, arguments.folder, arguments.docs, arguments.commit)
    gather_recall(Path(plan.recall), arguments.docs)
    results = read_results(plan, arguments.docs)
    write_page(results, arguments.docs)
    if importlib.util.find_spec("matplotlib"):
        draw_figures(results, arguments.docs)


def run(plan: Plan, arguments: argparse.Namespace) -> None:
    """Everything that is not done yet, within the minutes."""
    end = time.time() + 60 * arguments.stop_after
    runs = arguments.folder
    runs.mkdir(parents=True, exist_ok=True)
    if arguments.steps:
        _decide(runs / STEPS, arguments.steps)
    prepare(plan, runs, torch.device(arguments.device))
    rows = [row for row in rows_of(plan, arguments.only) if row.result(runs) is None]
    rows = [row for row in rows if not arguments.rows or row.key in arguments.rows]
    print(f"{len(rows)} rows to run, {(end - time.time()) / 60:.1f} minutes left", flush=True)
    Crew(plan, arguments, end).run(rows)


def prepare(plan: Plan, runs: Path, device: torch.device) -> None:
    """Draw the data and the exam, unless they are there."""
    if is_stored(runs / DATA) and (runs / EXAM).exists():
        return
    start = time.perf_counter()
    teacher = load_teacher(plan.teacher)
    teacher = teacher.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    write_exam(plan, teacher, runs / EXAM)
    print(f"exam written, {time.perf_counter() - start:.0f} s", flush=True)
    count = store_scenes(plan, teacher, runs / DATA)
    print(f"{count} steps drawn, {time.perf_counter() - start:.0f} s", flush=True)
    del teacher
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Crew:
    """Rows as processes, side by side. `end`: seconds since 1970 at which this call is over."""

    def __init__(self, plan: Plan, arguments: argparse.Namespace, end: float):
        self.plan, self.arguments, self.end, self.runs = plan, arguments, end, arguments.folder
        self.until = end - plan.exam_seconds
        self.working: list[Started] = []

    def run(self, rows: list[Row]) -> None:
        """Run all rows; ends at `end`, with rows that are not complete ready to go on."""
        waiting, waves = list(rows), -(-len(rows) // self.arguments.at_once)
        while waiting or self.working:
            while waiting and len(self.working) < self.arguments.at_once and time.time() < self.until:
                self.working.append(self._start(waiting.pop(0)))
            if not (self.runs / STEPS).exists():
                self._settle(waves)
            self._collect()
            if time.time() > self.end or (time.time() > self.until and not self.working):
                break
            time.sleep(_LOOK_EVERY)
        for started in self.working:
            started.process.terminate()
        self._collect(wait=True)

    def _start(self, row: Row) -> Started:
        folder = row.folder(self.runs)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PACE).unlink(missing_ok=True)
        log = (folder / "output.txt").open("a")
        command = [sys.executable, "-m", "builtin.table_row", "--row", row.key, "--seed", str(row.seed)]
        command += ["--plan", str(self.arguments.plan), "--folder", str(self.runs)]
        command += ["--device", self.arguments.device, "--until", str(self.until)]
        card, environment = self._card(), {**_ENV, **os.environ}
        if card is not None:
            environment["CUDA_VISIBLE_DEVICES"] = card
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        return Started(row, process, log, card)

    def _card(self) -> str | None:
        """The one on which fewest rows run; None leaves it to the environment."""
        busy = [started.card for started in self.working]
        return min(self.arguments.cards, key=busy.count) if self.arguments.cards else None

    def _settle(self, waves: int) -> None:
        """Once every row has said how fast it is, decide how many steps all take."""
        folders = {each.row.name: each.row.folder(self.runs) for each in self.working if each.row.plan.stages}
        if not folders or not all((folder / PACE).exists() for folder in folders.values()):
            return
        paces = {name: json.loads((folder / PACE).read_text()) for name, folder in folders.items()}
        left = self.until - time.time()
        steps = fit_steps(self.plan, paces, left, waves)
        _decide(self.runs / STEPS, steps, paces=paces)
        print(
            f"{steps} steps for every row, {left / 60:.1f} minutes left to train; paces {paces}", flush=True
        )

    def _collect(self, wait: bool = False) -> None:
        """Let go of rows that ended, and say how."""
        for started in list(self.working):
            if wait:
                started.process.wait()
            if started.process.poll() is None:
                continue
            started.log.close()
            self.working.remove(started)
            complete = started.row.result(self.runs) is not None
            gather(self.plan, self.runs, self.arguments.docs, self.arguments.commit)
            last = (started.row.folder(self.runs) / "output.txt").read_text().splitlines()[-1:]
            print(f"{started.row.name}: {'complete' if complete else f'not complete {last}'}", flush=True)


def _decide(path: Path, steps: int, **facts: object) -> None:
    """Write how many steps every row takes, once; raises SystemExit where it was decided otherwise."""
    if path.exists():
        before = json.loads(path.read_text())["steps"]
        if before != steps:
            raise SystemExit(f"{path} says {before} steps, not {steps}; give another --folder.")
        return
    with atomic_write(path) as part:
        part.write_text(json.dumps({"steps": steps, **facts}))


if __name__ == "__main__":
    main()
