"""One of several processes of a run: python -m tests.training.two_processes RECIPE[:stop=N|:resume]..."""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from infinitevl.training.course import teach
from infinitevl.training.recipes import read_recipe

torch.set_num_threads(1)

if __name__ == "__main__":
    for word in sys.argv[1:]:
        path, _, how = word.partition(":")
        stop = int(how.removeprefix("stop=")) if how.startswith("stop=") else None
        teach(read_recipe(path), resume=how == "resume", stop_after=stop)
