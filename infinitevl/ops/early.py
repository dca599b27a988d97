"""Programmatic dependent launch: a kernel starts, and fetches its weights, while the one before it drains.

A kernel launched so may read only what no kernel before it writes (weights) until `gdc_wait()`, which returns
when all earlier kernels have ended and what they wrote is seen. Every kernel that lets its successor start
(`gdc_launch_dependents()`) must itself have waited before it ends: else the successor of its successor could
overtake the kernel before it. Both calls do nothing in a kernel that was launched without.
"""

from functools import cache

import torch
from torch import Tensor
from triton import knobs

# Set to False to launch every kernel after the end of the one before it.
ENABLED = True


def launches_early(x: Tensor) -> bool:
    """Whether kernels on x's device may start before their predecessor has ended."""
    return ENABLED and x.is_cuda and _device_can(x.device.index)


@cache
def _device_can(index: int) -> bool:
    """Hopper and later; the interpreter runs one kernel after the other."""
    if knobs.runtime.interpret or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(index) >= (9, 0)
