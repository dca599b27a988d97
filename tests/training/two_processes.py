"""One of several processes of a run: python -m tests.training.two_processes RECIPE, under torchrun."""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from infinitevl.training.course import teach
from infinitevl.training.recipes import read_recipe

torch.set_num_threads(1)

if __name__ == "__main__":
    teach(read_recipe(sys.argv[1]))
