"""One of several processes of a run: python -m tests.training.two_processes RECIPE[:HOW]...

HOW is stop=N, resume, or press=N: the second process alone gets Ctrl-C in step N.
"""

import os
import signal
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from infinitevl.training.course import teach
from infinitevl.training.recipes import read_recipe
from infinitevl.training.run import Run

torch.set_num_threads(1)


def press_in_step(number):
    learn = Run.learn

    def pressed(self):
        if self.step + 1 == number and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self)

    Run.learn = pressed
    return learn


if __name__ == "__main__":
    for word in sys.argv[1:]:
        path, _, how = word.partition(":")
        stop = int(how.removeprefix("stop=")) if how.startswith("stop=") else None
        learn = press_in_step(int(how.removeprefix("press="))) if how.startswith("press=") else Run.learn
        teach(read_recipe(path), resume=how == "resume", stop_after=stop)
        Run.learn = learn
