"""One of several processes of a run: python -m tests.training.two_processes RECIPE[:HOW]...

HOW is stop=N, resume, or press=N: the second process alone gets Ctrl-C in step N.
"""

import os
import signal
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from infinitevl.training.recipes import read_recipe
from infinitevl.training.stage import teach
from infinitevl.training.trainer import Trainer

torch.set_num_threads(1)


def press_in_step(number):
    train_step = Trainer.train_step

    def pressed(self):
        if self.step + 1 == number and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self)

    Trainer.train_step = pressed
    return train_step


if __name__ == "__main__":
    for word in sys.argv[1:]:
        path, _, how = word.partition(":")
        stop = int(how.removeprefix("stop=")) if how.startswith("stop=") else None
        train_step = (
            press_in_step(int(how.removeprefix("press="))) if how.startswith("press=") else Trainer.train_step
        )
        teach(read_recipe(path), resume=how == "resume", stop_after=stop)
        Trainer.train_step = train_step
