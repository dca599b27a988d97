"""What every row of the tables is asked: prompts made once, since all rows see alike and share embeddings."""

import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from builtin.evaluate import FRAMES_AT_ONCE, Examiner, Task, scenes, tasks
from builtin.table_plan import Plan
from infinitevl.files import atomic_write
from infinitevl.model.fused import fuse_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.scenes import splits
from infinitevl.scenes.tasks import tidy

LENGTHS = [4, 16, 64]  # frames of streams
_MOST_ROWS = 256


def write_exam(plan: Plan, teacher: InfiniteVLForConditionalGeneration, path: Path) -> None:
    """Prompts of the validation split, by task, with the answers that count.

    Raises:
        KeyError: the plan names a task that there is not.
    """
    known = {
        task.name: task
        for task in tasks(*scenes(Path(plan.pack), splits.VALIDATION, teacher.device), LENGTHS)
    }
    wanted = dict.fromkeys(name for names in plan.exam.tasks.values() for name in names)
    examiner = Examiner(teacher, Tokenizer.from_file(str(plan.tokenizer)))
    exam = {name: _pages(examiner, known[name], plan.exam.num_samples) for name in wanted}
    with atomic_write(path) as part:
        torch.save(exam, part)


def _pages(examiner: Examiner, task: Task, count: int) -> list[dict[str, Any]]:
    """One task's prompts, as many at once as fit."""
    rng = splits.rng_of(splits.VALIDATION, 11, *task.name.encode())
    samples = [task.make(rng, number) for number in range(count)]
    at_once = max(1, min(_MOST_ROWS, FRAMES_AT_ONCE // max(1, len(samples[0].frames))))
    pages = []
    for start in range(0, count, at_once):
        part = samples[start : start + at_once]
        embeds, positions, lengths = examiner.prompts(part, task.scene.textures, task.scene.world)
        right = [[tidy(turn.answer), *map(tidy, turn.also)] for turn in (each.turns[0] for each in part)]
        prompt = {"embeds": embeds.cpu(), "positions": positions.cpu(), "lengths": lengths.cpu()}
        pages.append({**prompt, "right": right})
    return pages


def sit(plan: Plan, model: InfiniteVLForConditionalGeneration, path: Path) -> dict[str, dict[str, int]]:
    """The number of right answers of `model`, and of samples, by task."""
    examiner = Examiner(model, Tokenizer.from_file(str(plan.tokenizer)))
    if model.device.type == "cuda":
        fuse_(model)
    exam = torch.load(path, map_location=model.device, weights_only=True)
    return {name: _marks(examiner, pages) for name, pages in exam.items()}


def _marks(examiner: Examiner, pages: list[dict[str, Any]]) -> dict[str, int]:
    right, count = 0, 0
    for page in pages:
        embeds = page["embeds"].to(examiner.model.dtype)
        answers = examiner.reply(embeds, page["positions"], page["lengths"])
        right += sum(tidy(given) in wanted for given, wanted in zip(answers, page["right"], strict=True))
        count += len(answers)
    return {"right": right, "samples": count}


def mean_score(marks: dict[str, dict[str, int]], names: list[str]) -> float:
    """Mean share of right answers over tasks; nan where one was not asked."""
    if any(name not in marks for name in names):
        return math.nan
    return sum(marks[name]["right"] / marks[name]["samples"] for name in names) / len(names)
