"""Questions in words that no template has: by hand, in builtin/data/wordings.txt; a third is held back."""

import functools
from pathlib import Path
from random import Random

from builtin.world.splits import TEST, TRAIN, VALIDATION

CANNOT_KNOW = "cannot know"
_FILE = Path(__file__).parents[1] / "data" / "wordings.txt"
_OWNERS = (TRAIN, TRAIN, VALIDATION, TRAIN, TRAIN, TEST)  # of six lines of a task, in turn


@functools.lru_cache(maxsize=1)
def handwritten() -> dict[str, dict[str, tuple[str, ...]]]:
    """Returns the wordings of each split by task, with {} for what is asked for."""
    found: dict[str, dict[str, list[str]]] = {split: {} for split in set(_OWNERS)}
    task, number = "", 0
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            task, number = line.strip("[]"), 0
        elif line and not line.startswith("#"):
            found[_OWNERS[number % len(_OWNERS)]].setdefault(task, []).append(line)
            number += 1
    return {
        split: {task: tuple(lines) for task, lines in by_task.items()} for split, by_task in found.items()
    }


def pick_wording(rng: Random, task: str, templates: tuple[str, ...], split: str, share: float) -> str:
    """Picks one of the templates of a task, or, in a share of the cases, one of the split's own wordings."""
    own = handwritten()[split].get(task, ()) if share > 0 else ()
    return rng.choice(own if own and rng.random() < share else templates)
