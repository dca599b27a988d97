"""A few scores of a model that is still learning: one row for each thing that it is to learn."""

from pathlib import Path

import torch

from builtin.evaluate import Examiner, open_model, scenes, score
from builtin.exam import tasks
from builtin.vocabulary import open_tokenizer
from builtin.world.splits import VALIDATION
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.checkpoint import read_checkpoint

_ROWS = (
    "read, unseen families, 1 to 8 characters",
    "read, unseen families, any place and size",
    "name, unseen drawings",
    "flag",
    "flag in an unseen outline",
    "describe in a scene",
    "foreign pictures refused",
    "known pictures refused",
    "unanswerable questions refused",
    "about one picture, templates",
    "about one picture, unseen wordings",
    "first sign after 16 frames",
    "keyed sign after 16 frames",
    "last sign after 16 frames",
    "before in a stream of 4",
    "before in a stream of 16",
    "after in a stream of 16",
    "first thing in a stream of 16",
    "count in a stream of 16",
    "seen in a stream of 16",
)


def look(model: InfiniteVLForConditionalGeneration, data: Path, samples: int) -> dict[str, float]:
    """Print and return the share of right answers of a few rows of the table on validation."""
    examiner, found = Examiner(model, open_tokenizer(data / "tokenizer.json")), {}
    rows = {task.name: task for task in tasks(*scenes(data, VALIDATION, model.device), [16])}
    for name in _ROWS:
        result = score(examiner, rows[name], samples, VALIDATION)
        found[name] = result["score"]
        print(f"  {name:44s} {100 * result['score']:5.1f} %  {result['wrong'][:1]}", flush=True)
    return found


def under_way(start: Path, run: Path) -> InfiniteVLForConditionalGeneration:
    """The model of a stage that is not done: where it started from, with the weights of its checkpoint."""
    model, trained = open_model(start), read_checkpoint(run)["trained"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            given = [value for key, value in trained.items() if key.endswith(f".{name}")]
            if given:
                weight.copy_(given[0])
    return model
