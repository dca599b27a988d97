"""A run that ends badly: python -m tests.training.killed RECIPE WHERE STEP [RANK], WHERE being step or save.

In the middle of that step (between two of its batches), or in the middle of writing the checkpoint after it,
the process (of that rank) is killed as the system kills one: nothing is cleaned up.
"""

import os
import signal
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from infinitevl.errors import InfiniteVLError
from infinitevl.training.recipes import read_recipe
from infinitevl.training.stage import teach
from infinitevl.training.task import LossModule

torch.set_num_threads(1)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def in_step(number):
    forward, calls = LossModule.forward, []

    def counted(self, batch):
        calls.append(batch)
        if len(calls) == 2 * number:  # two rows a step: the second one
            die()
        return forward(self, batch)

    LossModule.forward = counted


def while_saving(number):
    save, calls = torch.save, []

    def half(state, path):
        save(state, path)
        calls.append(path)
        if state["step"] == number:
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
            die()

    torch.save = half


if __name__ == "__main__":
    recipe, where, number, *rank = sys.argv[1:]
    if os.environ.get("RANK", "0") == (rank[0] if rank else "0"):
        {"step": in_step, "save": while_saving}[where](int(number))
    try:
        teach(read_recipe(recipe))
    except InfiniteVLError as error:
        sys.exit(f"stopped: {error}")
