"""The built-in model through the published pipeline: teacher, surgery, stages 1a, 1b, 2 and 3, exams, recall.

    python -m builtin.school                                  # on one GPU, from beginning to end
    python -m builtin.school --processes 2 --stop-after 9     # on two, for nine minutes; again: goes on
    python -m builtin.school --give FOLDER                    # what the rest needs, in files of 15 MB
    python -m builtin.school --take FOLDER --keep OTHER       # go on from them, and keep what came new

SECONDS are of one GPU: with more processes a stage takes that much less. Steps that are done are skipped.
The file school.jsonl in the folder says how long each step took.
"""

import argparse
import dataclasses
import functools
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from builtin import glimpse, recall
from builtin.command import check_data, command
from builtin.evaluate import examine, open_model
from builtin.feed.settings import SmallData
from builtin.pieces import keep, take
from builtin.pretrain import HEADS, Pretrain
from builtin.rehearsal import Sizes, tiny_shape, tiny_stage
from builtin.stages import SmallStage, read_stage, write_stage
from builtin.start import read_shape, write_start
from builtin.timed import teach_for
from builtin.world import splits
from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.files import atomic_write
from infinitevl.training.checkpoint import CHECKPOINT, slim_checkpoint
from infinitevl.training.recipes import DistillLayers, DistillLogits, read_yaml
from infinitevl.training.stage import ADAPTER, MODEL
from infinitevl.training.surgery import StudentPlan, make_student, save_student

SECONDS = {"teacher_dense": 300.0, "teacher": 2100.0}
SECONDS |= {"distill_layers": 150.0, "distill_logits": 300.0, "sft": 1200.0, "long_sft": 1200.0}
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
RECIPES = Path(__file__).with_name("recipes")
PACKAGED = Path(
    "infinitevl/assets/builtin"
)  # stage 2 of the model before, from whose weights the teacher starts
OPENING = 25.0  # seconds for loading and measuring before a stage
LAUNCH = 20.0  # seconds until processes begin to count theirs
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
        start: the model whose weights the teacher starts with. processes: of each stage, one a GPU.
        stop_after: seconds that this call may take. scale: of the seconds that stages take.
        sizes: of a rehearsal; None for the real thing.
    """

    def __init__(
        self,
        folder: Path,
        data: Path = Path(".data"),
        recipes: Path = RECIPES,
        *,
        start: Path = PACKAGED,
        processes: int = 1,
        workers: int = 14,
        stop_after: float = 1e9,
        scale: float = 1.0,
        sizes: Sizes | None = None,
    ):
        self.folder, self.data, self.recipes = folder, data, recipes
        self.start, self.processes, self.workers = start, processes, workers
        self.scale, self.sizes = scale, sizes
        self.ends = time.perf_counter() + stop_after
        self.finished: list[str] = []
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def steps(self) -> list[Step]:
        """All steps, in order."""
        stages = [
            Step(name, OPENING + seconds * self.scale / self.processes, functools.partial(self.stage, name))
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
        check_data(self.data, splits.SPLITS if until not in SECONDS else (splits.TRAIN,))
        steps = self.steps()
        if until is not None and until not in {step.name for step in steps}:
            raise InputError(f"no step {until!r}; there are {', '.join(step.name for step in steps)}.")
        for step in steps:
            if (not self._done(step.name).exists() or self._is_lost(step.name)) and not self._try(step):
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

    def _is_lost(self, name: str) -> bool:
        """Whether a model that takes seconds to make, and is not carried along, has to be made again."""
        later = {START: "teacher_dense", STUDENT: "distill_layers"}.get(name)
        there = any((self.folder / name).glob("*.safetensors"))
        return later is not None and not there and not self._done(later).exists()

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
        plan = read_plan(self.recipes / "student.yaml")
        teacher = self.folder / "teacher" / MODEL
        missing = save_student(make_student(teacher, plan), teacher, self.folder / STUDENT)
        assert missing is None, missing

    def stage(self, name: str) -> None:
        """One of the stages, in as many steps as fit into its seconds, or in this call."""
        stage, plan = self._read(name), self.folder / f"{name}.json"
        if self.sizes and not plan.exists():
            _write(plan, {"num_steps": self.sizes.num_steps})
        left, out = self.left - OPENING / 2, Path(stage.recipe.out)
        if left < 1:
            raise Stopped
        self._rebuild(name)
        seconds = SECONDS[name] * self.scale / self.processes
        if self.processes == 1:
            teach_for(stage, plan, seconds, left)
        else:
            self._in_processes(stage, seconds, left)
        if not (out / MODEL).is_dir():
            raise Stopped
        (out / CHECKPOINT).unlink(missing_ok=True)

    def _in_processes(self, stage: SmallStage, seconds: float, left: float) -> None:
        """The same under torchrun."""
        recipe = Path(stage.recipe.out).with_suffix(".yaml")
        write_stage(stage, recipe)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        limits = ["--fit", str(seconds), "--minutes", str(max(0.0, left - LAUNCH) / 60)]
        command = [*launcher, str(self.processes), "-m", "builtin.teach", str(recipe), *limits]
        around = {} if self.device.type == "cuda" else {"ACCELERATE_USE_CPU": "true"}
        if (status := subprocess.run(command, env={**os.environ, **around}, check=False).returncode) != 0:
            raise InfiniteVLError(f"{recipe} ended with exit status {status}; its last lines say why.")

    def _rebuild(self, name: str) -> None:
        """A folder to open the teacher from, where a checkpoint that was carried holds all its weights."""
        before = self.folder / BEFORE[name]
        if name == "teacher" and not before.exists() and (self.folder / name / CHECKPOINT).exists():
            shape = read_shape(self.recipes / "teacher_shape.yaml")
            shape = tiny_shape(shape) if self.sizes else shape
            write_start(shape, self.data / "tokenizer.json", before)

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
            window = read_plan(self.recipes / "student.yaml").window
            models |= recall.with_teacher(self.folder / "teacher" / MODEL, window)
        sizes = self.sizes
        extent = recall.Extent(sizes.lengths, sizes.samples, 8) if sizes else recall.Extent()
        recall.save(recall.run(models, self.data, splits.TEST, extent), self.folder / RECALL)

    # ------ between calls

    @property
    def running(self) -> str | None:
        """The stage that was begun and has steps left."""
        return next((name for name in SECONDS if (self.folder / name / CHECKPOINT).exists()), None)

    def needed(self) -> list[str]:
        """Folders and files in the school's that the steps which are left read."""
        left = next((step.name for step in self.steps() if not self._done(step.name).exists()), RECALL)
        exams = [f"{name}/{MODEL}" for name in ("teacher", "sft", "long_sft")]
        needs = {"teacher": ["teacher_dense"], START: [], "teacher_dense": []}
        needs |= {name: [BEFORE[name]] for name in ("sft", "long_sft")}
        needs |= {STUDENT: [f"teacher/{MODEL}"], "distill_layers": [f"teacher/{MODEL}"]}
        needs["distill_logits"] = [BEFORE["distill_logits"], f"teacher/{MODEL}"]
        wanted = list(needs.get(left, exams))
        if left == "teacher" and self.running == left:  # its checkpoint holds all weights
            wanted = ["teacher_dense/heads.safetensors"]
        return wanted

    def keep(self, out: Path, models: list[str]) -> None:
        """Write pieces of some models, and of the checkpoint of a stage that is not done, without moments."""
        with tempfile.TemporaryDirectory() as aside:
            extra = {}
            if self.running:
                extra[f"{self.running}/{CHECKPOINT}"] = Path(aside) / CHECKPOINT
                slim_checkpoint(self.folder / self.running, Path(aside) / CHECKPOINT)
            keep(self.folder, out, models, extra)

    def glimpse(self, samples: int) -> None:
        """Print a few scores on validation of whatever is there: the newest model, or the stage under way."""
        found = self._newest()
        if found is not None:
            name, model = found
            print(f"a glimpse at {name}, validation, {samples} samples a row", flush=True)
            glimpse.look(model, self.data, samples)

    def _newest(self):
        if self.running in BEFORE and self.running != "long_sft":
            return self.running, glimpse.under_way(
                self.folder / BEFORE[self.running], self.folder / self.running
            )
        done = [name for name in SECONDS if (self.folder / name / MODEL).is_dir() and name != "teacher_dense"]
        return (done[-1], open_model(self.folder / done[-1] / MODEL)) if done else None

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
        "--start", type=Path, default=PACKAGED, help="model whose weights the teacher takes over"
    )
    parser.add_argument("--processes", type=int, default=1, help="of each stage, one a GPU")
    parser.add_argument("--workers", type=int, default=14, help="that plan ahead, for each process")
    parser.add_argument("--until", help="the last step of this call")
    parser.add_argument("--stop-after", type=float, default=1e7, help="minutes that this call may take")
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds that the stages take")
    parser.add_argument("--tiny", action="store_true", help="rehearse every step with tiny numbers")
    parser.add_argument("--take", type=Path, help="first put back the pieces of this folder")
    parser.add_argument("--keep", type=Path, help="write what this call finished here, in files of 15 MB")
    parser.add_argument("--give", type=Path, help="only write what the rest needs here, in files of 15 MB")
    parser.add_argument("--glimpse", type=int, default=0, metavar="SAMPLES", help="at the end, a few scores")
    arguments = parser.parse_args()
    school = School(
        arguments.folder,
        arguments.data,
        arguments.recipes,
        start=arguments.start,
        processes=arguments.processes,
        workers=arguments.workers,
        stop_after=60 * arguments.stop_after,
        scale=arguments.scale,
        sizes=Sizes() if arguments.tiny else None,
    )
    if arguments.take:
        take(arguments.take, arguments.folder)
    if arguments.give:
        school.keep(arguments.give, school.needed())
        return
    try:
        complete = school.go(arguments.until)
    finally:  # what was finished is kept, whatever failed after it
        if arguments.keep:
            school.keep(arguments.keep, models_of(school.finished))
    if arguments.glimpse:
        school.glimpse(arguments.glimpse)
    print("complete" if complete else "goes on with the same command", flush=True)


def read_plan(path: Path) -> StudentPlan:
    """How the student differs from its teacher, from a YAML file; InputError for an unknown setting."""
    found = read_yaml(path)
    try:
        return StudentPlan(**found)
    except TypeError as error:
        raise InputError(f"{path}: {error}") from error


def models_of(steps: list[str]) -> list[str]:
    """Folders of the models that these steps made, and that a later call or the package needs."""
    wanted = {
        "teacher_dense": "teacher_dense",
        "teacher": f"teacher/{MODEL}",
        "distill_layers": f"distill_layers/{MODEL}",
        "distill_logits": f"distill_logits/{MODEL}",
        "sft": f"sft/{MODEL}",
    }
    wanted["long_sft"] = f"long_sft/{ADAPTER}"
    replaced = {"teacher": "teacher_dense", "distill_logits": "distill_layers", "sft": "distill_logits"}
    for step, earlier in replaced.items():
        if step in steps:
            wanted.pop(earlier)
    return [folder for step, folder in wanted.items() if step in steps]


if __name__ == "__main__":
    main()
