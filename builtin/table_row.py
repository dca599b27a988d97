"""One row of the tables, as a process of its own: surgery, its stages, its exam.

    python -m builtin.table_row --plan recipes/tables/small.yaml --row hybrid --seed 0 --folder runs/tables

`builtin.tables` starts these side by side. A row first says how fast it is beside the others and waits until
the steps are decided for all (`steps.json`); one that was stopped goes on where it was, bit for bit.
"""

import argparse
import contextlib
import copy
import functools
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from builtin.table_data import Seen, StoredFeed
from builtin.table_exam import sit
from builtin.table_plan import ORDER, Plan, Row, read_plan
from infinitevl.config import LINEAR
from infinitevl.files import atomic_write
from infinitevl.model.fused import training_kernels
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.parts import DISTILL_LAYERS, DISTILL_LOGITS, LONG_SFT, STAGES, fate, freeze_
from infinitevl.training.run import CHECKPOINT, Lesson, Run, Settings, Teaching
from infinitevl.training.stages.distill import distill_layers, distill_logits
from infinitevl.training.stages.reading import Batch, answers, real_tokens
from infinitevl.training.stages.sft import sft
from infinitevl.training.surgery import StudentPlan, make_student
from infinitevl.training.teacher import load_teacher

Model = InfiniteVLForConditionalGeneration
STEPS, PACE, RESULT, DATA, EXAM = "steps.json", "pace.json", "result.json", "data", "exam.pt"
_AT_ONCE = 10  # steps between two looks at the clock
_FAR = 10**6
_COUNTED = 0.85  # of the steps that measure a pace


class Student:
    """A row's student with its teacher, on the device."""

    def __init__(self, plan: Plan, row: Row, device: torch.device):
        self.plan, self.row, self.device = plan, row, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.teacher = load_teacher(plan.teacher)
        text = self.teacher.config.text_config
        surgery = StudentPlan(
            layer_types=row.plan.layer_types(text.num_hidden_layers),
            window=plan.window,
            initializer_range=plan.initializer_range,
            seed=row.seed,
        )
        is_taught = bool(row.plan.stages)
        self.model = make_student(plan.teacher, surgery) if is_taught else load_teacher(plan.teacher)
        self.kinds = self.model.config.text_config.layer_types
        for model in (self.model, self.teacher):
            model.model.visual = Seen()
            model.to(device, self.dtype)

    def begin(self, stage: str, num_steps: int, first: int, runs: Path, folder: Path) -> Run:
        """A stage of `num_steps`, from step `first` of the row; trained weights are float32 from here on."""
        self.model = copy.deepcopy(self.model)  # parameters on which an earlier run left nothing
        freeze_(self.model, self.kinds, stage)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else self.dtype)
        precision = None if self.dtype == torch.float32 else self.dtype
        lesson = Lesson(self.model, self._loss(stage), precision)
        feed = StoredFeed(runs / DATA, self.row.seed, first)
        settings = Settings(
            num_steps,
            self.plan.learning_rate[stage],
            seed=self.row.seed,
            save_every=_FAR,
            log_every=50,
            identity={"row": self.row.name, "stage": stage, "steps": num_steps, "first": first},
        )
        here = Accelerator(cpu=self.device.type == "cpu")
        return Run(Teaching(lesson, feed, _count(stage)), settings, folder, here)

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """Within it student and teacher run on kernels that train fast."""
        with training_kernels(self.model, self.dtype), training_kernels(self.teacher, self.dtype):
            yield

    def _loss(self, stage: str) -> Callable[[Batch], Tensor]:
        if stage == DISTILL_LAYERS:
            return functools.partial(distill_layers, self.model, self.teacher)
        if stage == DISTILL_LOGITS:
            heat = self.plan.temperature
            return functools.partial(distill_logits, self.model, self.teacher, temperature=heat)
        return functools.partial(sft, self.model)


def _count(stage: str) -> Callable[[Batch], int]:
    if stage == DISTILL_LAYERS:
        return lambda batch: int(real_tokens(batch).sum())
    return lambda batch: len(answers(batch)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one row of the tables.")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--row", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds since 1970")
    arguments = parser.parse_args()
    plan = read_plan(arguments.plan)
    row = Row(arguments.row, arguments.seed, plan.rows[arguments.row])
    done = run_row(plan, row, arguments.folder, torch.device(arguments.device), arguments.until)
    print("complete" if done else "stopped", flush=True)


def run_row(plan: Plan, row: Row, runs: Path, device: torch.device, until: float) -> bool:
    """Teach the row's student until the clock says `until`; returns whether it was taught and examined."""
    folder = row.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    student, steps = Student(plan, row, device), {}
    if row.plan.stages:
        if not (runs / STEPS).exists():
            student = _measure(student, runs, folder, until)
        steps = row.plan.steps(_total_steps(runs / STEPS, until))
    if not _teach(student, steps, runs, folder, until):
        return False
    trained = _trained(student)
    student.model.eval().to(student.dtype)
    facts = {
        "row": row.key,
        "seed": row.seed,
        "layers": [("window", "delta")[kind == LINEAR] for kind in student.kinds],
        "steps": steps,
        "minutes": round(_seconds(folder) / 60, 2),
        "trained": trained,
        "decoder": sum(p.numel() for p in student.model.model.language_model.parameters()),
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "marks": sit(plan, student.model, runs / EXAM),
    }
    with atomic_write(folder / RESULT) as path:
        path.write_text(json.dumps(facts, indent=1))
    for stage in steps:
        (folder / stage / CHECKPOINT).unlink()
    return True


def _teach(student: Student, steps: dict[str, int], runs: Path, folder: Path, until: float) -> bool:
    """All stages, each from its checkpoint where there is one; returns whether time was enough."""
    first = 0
    for stage, num_steps in steps.items():
        run = student.begin(stage, num_steps, first, runs, folder / stage)
        if (folder / stage / CHECKPOINT).exists():
            run.resume()
        start = time.perf_counter()
        with student.kernels():
            while run.step < num_steps and time.time() < until:
                run.go(_AT_ONCE)
        _add_seconds(folder, time.perf_counter() - start)
        if run.step < num_steps:
            run.save()
            return False
        run.spread.restore()
        first += num_steps
    return True


def _measure(student: Student, runs: Path, folder: Path, until: float) -> Student:
    """Write how many seconds a step of each stage takes; returns a student that has learnt nothing."""
    aside, pace = folder / "pace", {}
    for stage in ORDER:
        if stage in student.row.plan.stages and time.time() < until:
            run = student.begin(stage, _FAR, 0, runs, aside)
            with student.kernels():
                pace[stage] = _seconds_a_step(run, student.plan)
    shutil.rmtree(aside, ignore_errors=True)
    with atomic_write(folder / PACE) as path:
        path.write_text(json.dumps(pace))
    return Student(student.plan, student.row, student.device)


def _seconds_a_step(run: Run, plan: Plan) -> float:
    """Mean over the steps that were not among the slowest, which are those that built kernels."""
    run.go(3)
    start, times = time.perf_counter(), [time.perf_counter()]
    while len(times) == 1 or times[-1] - start < plan.pace_seconds:
        run.go(1)
        times.append(time.perf_counter())
    steps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    return mean(steps[: max(1, round(_COUNTED * len(steps)))])


def _total_steps(path: Path, until: float) -> int:
    """What was decided for all rows. Raises TimeoutError where nobody decides."""
    while not path.exists():
        if time.time() > until:
            raise TimeoutError(f"{path} was not written; `builtin.tables` does that.")
        time.sleep(0.2)
    return json.loads(path.read_text())["steps"]


def _trained(student: Student) -> dict[str, int]:
    """Number of weights that train, by stage."""
    named = list(student.model.named_parameters())
    stages = [stage for stage in STAGES if stage != LONG_SFT]
    return {
        stage: sum(p.numel() for name, p in named if fate(name, student.kinds, stage) == "trains")
        for stage in stages
    }


def _seconds(folder: Path) -> float:
    path = folder / "seconds.json"
    return json.loads(path.read_text()) if path.exists() else 0.0


def _add_seconds(folder: Path, seconds: float) -> None:
    """Of training, over all calls."""
    total: Any = _seconds(folder) + seconds
    (folder / "seconds.json").write_text(json.dumps(total))


if __name__ == "__main__":
    main()
