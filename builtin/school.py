"""The built-in model through the published pipeline: teacher, surgery, stages 1a, 1b, 2 and 3, scores.

    python -m builtin.school                            # all of it, about 23 minutes of one H200
    python -m builtin.school --stop-after 9 --until sft # ends after 9 minutes or after stage 2 ...
    python -m builtin.school                            # ... and goes on from where it was
    python -m builtin.school --tiny --folder runs/tiny  # a rehearsal with tiny numbers, on a CPU

A step that is finished is left out. How many steps a stage takes follows from its seconds (`SECONDS`) and
from its pace, which is measured first and written beside it. school.jsonl says how long everything took.
"""

import argparse
import dataclasses
import functools
import gc
import json
import platform
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from builtin import recall
from builtin.command import check_data, command
from builtin.evaluate import examine, open_model
from builtin.feed.settings import SmallData
from builtin.pieces import keep
from builtin.pretrain import HEADS, Pretrain
from builtin.rehearsal import Sizes, tiny_shape, tiny_stage
from builtin.stages import SmallStage, read_stage, teach
from builtin.start import read_shape, write_start
from builtin.world import splits
from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.files import atomic_write
from infinitevl.training.checkpoint import CHECKPOINT
from infinitevl.training.recipes import DistillLayers, DistillLogits
from infinitevl.training.stage import ADAPTER, MODEL
from infinitevl.training.surgery import StudentPlan, make_student, save_student
from infinitevl.training.training_log import LOG

SECONDS = {"teacher_dense": 120.0, "teacher": 360.0}
SECONDS |= {"distill_layers": 45.0, "distill_logits": 70.0, "sft": 175.0, "long_sft": 260.0}
START, STUDENT = "start", "student"
BEFORE = {
    "teacher_dense": START,
    "teacher": "teacher_dense/model",
    "distill_layers": STUDENT,
    "distill_logits": "distill_layers/model",
    "sft": "distill_logits/model",
}
BEFORE["long_sft"] = "sft/model"
SEED = 40  # of the weights that the teacher does not take over
WINDOW, INITIALIZER_RANGE = 64, 0.0625  # of the student; hidden_size^-0.5
RECIPES = Path(__file__).with_name("recipes")
PRETRAINED = Path("runs/hybrid/keyed/model")
TRIAL_STEPS = 36  # of which the last third is measured
OPENING = 25.0  # seconds for loading and measuring before a stage
SCORES, RECALL, DONE = "scores", "recall", "done"


class Stopped(Exception):
    """The time of this call is over; what is done so far lies on the disk."""


@dataclass(frozen=True)
class Step:
    """One step of the school. seconds: that it is likely to take; without so many left it is not begun."""

    name: str
    seconds: float
    run: Callable[[], None]


class School:
    """A folder in which one step after another is finished.

    Args:
        start: the model whose weights the teacher starts with.
        stop_after: seconds that this call may take. scale: of the seconds that stages take.
        sizes: of a rehearsal; None for the real thing.
    """

    def __init__(
        self,
        folder: Path,
        data: Path = Path(".data"),
        recipes: Path = RECIPES,
        *,
        start: Path = PRETRAINED,
        workers: int = 14,
        stop_after: float = 1e9,
        scale: float = 1.0,
        sizes: Sizes | None = None,
    ):
        self.folder, self.data, self.recipes = folder, data, recipes
        self.start, self.workers, self.scale, self.sizes = start, workers, scale, sizes
        self.ends = time.perf_counter() + stop_after
        self.finished: list[str] = []
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def steps(self) -> list[Step]:
        """All steps, in order."""
        stages = [
            Step(name, OPENING + seconds * self.scale, functools.partial(self.stage, name))
            for name, seconds in SECONDS.items()
        ]
        return [
            Step(START, 10, self.start_model),
            *stages[:2],
            Step(STUDENT, 10, self.student),
            *stages[2:],
            *(self._exam(name, splits.TEST) for name in ("teacher", "sft", "long_sft")),
            Step(RECALL, 120, self.recall),
            *(self._exam(name, splits.VALIDATION) for name in ("sft", "long_sft", "teacher")),
        ]

    def go(self, until: str | None = None) -> bool:
        """Every step that is not finished, up to `until`; returns whether all of them are.

        Raises:
            InputError: no step has that name, or there is no data.
        """
        check_data(self.data)
        steps = self.steps()
        if until is not None and until not in {step.name for step in steps}:
            raise InputError(f"no step {until!r}; there are {', '.join(step.name for step in steps)}.")
        for step in steps:
            if not self._done(step.name).exists() and not self._try(step):
                return False
            if step.name == until:
                break
        return True

    def _try(self, step: Step) -> bool:
        """Whether to go on with the next step; what fails is told in the log and raised."""
        start = time.perf_counter()
        begun = step.name in SECONDS and (self.folder / step.name / CHECKPOINT).exists()
        if self.left < step.seconds and not begun and not self._can_pause(step.name):
            self._tell(step.name, "no time left for it in this call", 0.0)
            return False
        try:
            step.run()
        except Stopped:
            self._tell(step.name, "stopped, goes on in the next call", time.perf_counter() - start)
            return False
        except BaseException:
            self._tell(step.name, "failed", time.perf_counter() - start)
            raise
        passed = time.perf_counter() - start
        self._tell(step.name, "done", passed)
        self.finished.append(step.name)
        _write(self._done(step.name), {"seconds": round(self._earlier(step.name) + passed, 1), **_machine()})
        gc.collect()
        torch.cuda.empty_cache()
        return True

    def _earlier(self, name: str) -> float:
        """Seconds that a step took in calls that ended before it did."""
        log = self.folder / "school.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return sum(
            line["seconds"] for line in lines if line["step"] == name and line["what"].startswith("stopped")
        )

    @property
    def left(self) -> float:
        """Seconds of this call that are left."""
        return self.ends - time.perf_counter()

    # ------ the steps

    def start_model(self) -> None:
        """The teacher before it learned: full attention in every layer, other weights from `start`."""
        shape, weights = read_shape(self.recipes / "teacher_shape.yaml"), str(self.start)
        if self.sizes:
            shape, weights = tiny_shape(shape), None
        shutil.rmtree(self.folder / START, ignore_errors=True)
        write_start(shape, self.data / "tokenizer.json", self.folder / START, SEED, weights)

    def student(self) -> None:
        """Window attention and new Gated DeltaNets in the teacher's place."""
        shutil.rmtree(self.folder / STUDENT, ignore_errors=True)
        plan = StudentPlan(window=WINDOW, initializer_range=INITIALIZER_RANGE)
        teacher = self.folder / "teacher" / MODEL
        missing = save_student(make_student(teacher, plan), teacher, self.folder / STUDENT)
        assert missing is None, missing

    def stage(self, name: str) -> None:
        """One of the stages; if its loss is no number, once more with half the learning rate."""
        stage = self._read(name)
        try:
            self._stage(name, stage)
        except InfiniteVLError:
            traceback.print_exc()
            for path in (self.folder / name, self.folder / f"{name}.json"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            self._stage(name, stage.changed(learning_rate=stage.recipe.learning_rate / 2))

    def _stage(self, name: str, stage: SmallStage) -> None:
        """In as many steps as fit into its seconds."""
        out = self.folder / name
        plan = self.folder / f"{name}.json"
        if not plan.exists():
            _write(plan, self._plan(stage, SECONDS[name] * self.scale))
        decided = json.loads(plan.read_text())
        stage = stage.changed(num_steps=decided["num_steps"])
        allowed = int((self.left - OPENING / 2) / max(decided["pace"], 1e-9))
        resume = (out / CHECKPOINT).exists()
        if allowed < 1:
            raise Stopped
        stop_after = allowed if allowed < decided["num_steps"] else None
        if teach(stage, resume=resume, stop_after=stop_after) is None:
            raise Stopped
        (out / CHECKPOINT).unlink(missing_ok=True)

    def _plan(self, stage: SmallStage, seconds: float) -> dict:
        """How many steps fit into so many seconds."""
        if self.sizes:
            return {"num_steps": self.sizes.num_steps, "pace": 0.0}
        trial = Path(stage.recipe.out).with_name("trial")
        shutil.rmtree(trial, ignore_errors=True)
        short = {"out": str(trial), "num_steps": 2 * TRIAL_STEPS, "log_every": TRIAL_STEPS // 3}
        teach(stage.changed(**short), stop_after=TRIAL_STEPS)
        last = json.loads((trial / LOG).read_text().splitlines()[-1])
        shutil.rmtree(trial)
        gc.collect()
        pace = last["seconds_left"] / (2 * TRIAL_STEPS - last["step"])
        return {"num_steps": max(10, int(seconds / pace)), "pace": round(pace, 5), "seconds": seconds}

    def _exam(self, name: str, split: str) -> Step:
        return Step(f"exam-{name}-{split}", 60, lambda: self.exam(name, split))

    def exam(self, name: str, split: str) -> None:
        """Scores of a model on a split; the model of a step that is not here is an error."""
        sizes = self.sizes
        lengths, samples = (list(sizes.lengths), sizes.samples) if sizes else ([4, 16, 64, 256], 600)
        if split == splits.VALIDATION and not sizes:
            samples = 300
        found = examine(open_model(self.folder / name / MODEL), self.data, split, lengths, samples)
        (self.folder / SCORES).mkdir(exist_ok=True)
        _write(self.folder / SCORES / f"{name}-{split}.json", {"model": name, **found})

    def recall(self) -> None:
        """Recall against the length of a stream, for whatever models are here."""
        names = {"stage 2": "sft", "stage 3": "long_sft"}
        models = {title: open_model(self.folder / name / MODEL) for title, name in names.items()}
        if (self.folder / "teacher" / MODEL).exists():
            models |= recall.with_teacher(self.folder / "teacher" / MODEL, WINDOW)
        sizes = self.sizes
        extent = recall.Extent(sizes.lengths, sizes.samples, 8) if sizes else recall.Extent()
        recall.save(recall.run(models, self.data, splits.TEST, extent), self.folder / RECALL)

    # ------ recipes, marks

    def _read(self, name: str) -> SmallStage:
        """A stage's recipe with this school's folders, data and workers."""
        stage = read_stage(self.recipes / f"{name}.yaml")
        if self.sizes:
            stage = tiny_stage(stage, self.sizes)
        scenes = stage.data.scenes.model_copy(update={"pack": str(self.data / "train.pack")})
        data = SmallData(scenes=scenes, workers=0 if self.sizes else self.workers)
        changes = {"student": str(self.folder / BEFORE[name]), "out": str(self.folder / name)}
        if isinstance(stage.recipe, Pretrain) and stage.recipe.heads is not None:
            changes["heads"] = str((self.folder / BEFORE[name]).with_name(HEADS))
        if isinstance(stage.recipe, DistillLayers | DistillLogits):
            changes["teacher"] = str(self.folder / "teacher" / MODEL)
        return dataclasses.replace(stage.changed(**changes), data=data)

    def _can_pause(self, name: str) -> bool:
        """Whether a step that was begun goes on in the next call, and this one has a minute for it."""
        return name in SECONDS and self.left > OPENING + 30

    def _done(self, name: str) -> Path:
        return self.folder / DONE / f"{name}.json"

    def _tell(self, name: str, what: str, seconds: float) -> None:
        line = {"step": name, "what": what, "seconds": round(seconds, 1), "at": time.strftime("%H:%M:%S")}
        print(json.dumps(line), flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "school.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def _machine() -> dict[str, str]:
    """What a step ran on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": device, **versions, "python": platform.python_version()}


def _write(path: Path, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(json.dumps(found, indent=1))


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="The built-in model through the published pipeline.")
    parser.add_argument("--folder", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--data", type=Path, default=Path(".data"), help="folder of build_data")
    parser.add_argument("--recipes", type=Path, default=RECIPES)
    parser.add_argument(
        "--start", type=Path, default=PRETRAINED, help="model whose weights the teacher takes over"
    )
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--until", help="the last step of this call")
    parser.add_argument("--stop-after", type=float, default=1e7, help="minutes that this call may take")
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds that the stages take")
    parser.add_argument("--tiny", action="store_true", help="rehearse every step with tiny numbers")
    parser.add_argument("--keep", type=Path, help="write what this call finished here, in files of 15 MB")
    arguments = parser.parse_args()
    school = School(
        arguments.folder,
        arguments.data,
        arguments.recipes,
        start=arguments.start,
        workers=arguments.workers,
        stop_after=60 * arguments.stop_after,
        scale=arguments.scale,
        sizes=Sizes() if arguments.tiny else None,
    )
    try:
        complete = school.go(arguments.until)
    finally:  # what was finished is kept, whatever failed after it
        if arguments.keep:
            keep(arguments.folder, arguments.keep, models_of(school.finished))
    print("complete" if complete else "goes on with the same command", flush=True)


def models_of(steps: list[str]) -> list[str]:
    """Folders of the models that these steps made, and that a later call or the package needs."""
    wanted = {
        "teacher_dense": "teacher_dense",
        "teacher": f"teacher/{MODEL}",
        "distill_logits": f"distill_logits/{MODEL}",
        "sft": f"sft/{MODEL}",
    }
    wanted["long_sft"] = f"long_sft/{ADAPTER}"
    for step, earlier in {"teacher": "teacher_dense", "sft": "distill_logits"}.items():
        if step in steps:
            wanted.pop(earlier)
    return [folder for step, folder in wanted.items() if step in steps]


if __name__ == "__main__":
    main()
