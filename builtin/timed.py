"""A stage in as many steps as fit into its seconds, over several calls, on one or several GPUs (torchrun)."""

import gc
import json
import shutil
import time
from pathlib import Path

from builtin.stages import SmallStage, teach
from infinitevl.files import atomic_write
from infinitevl.training.checkpoint import CHECKPOINT
from infinitevl.training.trainer import processes
from infinitevl.training.training_log import LOG

TRIAL_STEPS = 36  # of which the last third is measured
_MOST = 10_000_000  # seconds


def teach_for(stage: SmallStage, plan: Path, seconds: float, left: float = _MOST) -> Path | None:
    """Teach a stage that is to take `seconds` in all, for at most `left` seconds of this call.

    How many steps fit is measured in the first call and kept in the file `plan`. All processes call it.

    Returns:
        The folder of the finished model, or None where steps are left, which the next call takes.
    """
    ends, everyone = time.monotonic() + left, processes()
    if not plan.exists():
        everyone.wait_for_everyone()  # before one of them writes it
        found = _measured(stage, seconds)
        if everyone.is_main_process:
            with atomic_write(plan) as part:
                part.write_text(json.dumps({**found, "processes": everyone.num_processes}))
        everyone.wait_for_everyone()
    decided = stage.changed(num_steps=json.loads(plan.read_text())["num_steps"])
    resume = (Path(stage.recipe.out) / CHECKPOINT).exists()
    return teach(decided, resume=resume, seconds=max(0.0, ends - time.monotonic()))


def _measured(stage: SmallStage, seconds: float) -> dict[str, float]:
    """How many steps fit into so many seconds, from a trial."""
    trial, everyone = Path(stage.recipe.out).with_name("trial"), processes()
    if everyone.is_main_process:
        shutil.rmtree(trial, ignore_errors=True)
    everyone.wait_for_everyone()
    short = {"out": str(trial), "num_steps": 2 * TRIAL_STEPS, "log_every": TRIAL_STEPS // 3}
    teach(stage.changed(**short), stop_after=TRIAL_STEPS)
    everyone.wait_for_everyone()
    last = json.loads((trial / LOG).read_text().splitlines()[-1])
    everyone.wait_for_everyone()
    if everyone.is_main_process:
        shutil.rmtree(trial)
    gc.collect()
    pace = last["seconds_left"] / (2 * TRIAL_STEPS - last["step"])
    return {"num_steps": max(10, int(seconds / pace)), "pace": round(pace, 5), "seconds": seconds}
