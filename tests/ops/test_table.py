"""What is told about kernels is what runs."""

import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from infinitevl.ops import table
from infinitevl.ops.table import CALL, ENGINE, OPERATIONS, TORCH, TRAINING, Kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NAMES = [field.name for field in fields(Kernels) if field.name != "name"]


def told(device, moment=ENGINE):
    """What is said of each operation, by its title."""
    return {choice.op: choice for choice in table.describe(device) if choice.moment == moment}


def test_plain_torch_runs_everywhere_but_on_cuda():
    assert table.choose(CPU) is TORCH
    assert not [choice for choice in table.describe(CPU) if "Triton" in choice.kernel]
    assert {choice.why for choice in table.describe(CPU)} == {"Triton needs CUDA, this is cpu"}


@pytest.mark.parametrize("version", [None, "13.0"])
def test_a_gpu_without_triton_or_cuda_says_what_is_missing(monkeypatch, version):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(table, "has_triton", lambda: version is None)
    assert table.choose(CUDA) is TORCH
    reason = "triton is not installed: pip install triton" if version else "built without CUDA"
    assert all(reason in choice.why for choice in table.describe(CUDA))


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_told_by_the_kernel_that_runs_it(monkeypatch, name):
    """One kernel at a time differs from plain torch: its text changes if there is such a kernel, no other."""
    operation = OPERATIONS[name]
    before = {op: choice.kernel for op, choice in told(CPU).items()}
    monkeypatch.setattr(table, "choose", lambda device: replace(TORCH, **{name: lambda: None}))
    after = {op: choice.kernel for op, choice in told(CPU).items()}
    changed = {op: text for op, text in after.items() if text != before[op]}
    assert before[operation.title] == operation.torch.text
    assert changed == ({operation.title: operation.triton.text} if operation.triton else {})


def test_every_kernel_has_an_operation_and_no_two_share_a_title():
    assert list(OPERATIONS) == NAMES
    assert len({operation.title for operation in OPERATIONS.values()}) == len(NAMES) == len(told(CPU))
    assert {getattr(TORCH, name) for name in NAMES} == {op.torch.function for op in OPERATIONS.values()}


def test_what_trains_on_a_gpu_is_told_where_triton_is_and_limits_by_size(monkeypatch):
    monkeypatch.setattr(table, "why_torch", lambda device: "")
    monkeypatch.setattr(table, "triton_kernels", lambda: TORCH)
    trained = {op.title: op.training.text for op in OPERATIONS.values() if op.training}
    assert {op: choice.kernel for op, choice in told(CUDA, TRAINING).items()} == trained
    assert str(table.MATVEC_ROWS) in told(CUDA, CALL)["product"].kernel


def test_asking_what_runs_on_a_cpu_imports_no_kernels():
    program = (
        "import sys, infinitevl\nfrom infinitevl.ops.table import describe\ndescribe('cpu')\n"
        "parts = [name.split('.') for name in sys.modules if name.startswith('infinitevl.ops')]\n"
        "assert parts and not [name for name in parts if {'triton', 'train'} & set(name)]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
