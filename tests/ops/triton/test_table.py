"""On CUDA the Triton kernels run every operation that has one."""

from dataclasses import fields

import torch

from infinitevl.ops import table
from infinitevl.ops.table import OPERATIONS, TORCH


def test_on_cuda_triton_runs_what_it_is_told_to_run(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    kernels = table.choose(torch.device("cuda"))
    others = {
        field.name
        for field in fields(kernels)[1:]
        if getattr(kernels, field.name) is not getattr(TORCH, field.name)
    }
    assert others == {name for name, operation in OPERATIONS.items() if operation.triton}
    told = {choice.op: choice.kernel for choice in table.describe("cuda") if choice.moment == table.ENGINE}
    assert "Triton" in told["rotary angles"]
    for name, operation in OPERATIONS.items():
        assert ("Triton" in told[operation.title]) == (name in others), name


def test_every_kernel_that_trains_can_be_loaded():
    assert all(callable(found.training.load()) for found in OPERATIONS.values() if found.training)
