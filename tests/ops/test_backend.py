"""What is told about kernels is what runs."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from infinitevl.ops import backend
from infinitevl.ops.kernels import TORCH

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_plain_torch_runs_everywhere_but_on_cuda():
    assert backend.choose(CPU) is TORCH
    told = backend.describe(CPU)
    assert not [choice for choice in told if "Triton" in choice.kernel]
    assert {choice.why for choice in told} >= {"Triton needs CUDA, this is cpu"}


@pytest.mark.parametrize("version", [None, "13.0"])
def test_a_gpu_without_triton_or_cuda_says_what_is_missing(monkeypatch, version):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(backend, "has_triton", lambda: version is None)
    assert backend.choose(CUDA) is TORCH
    reason = "triton is not installed: pip install triton" if version else "built without CUDA"
    assert any(reason in choice.why for choice in backend.describe(CUDA))


def test_each_operation_is_told_by_the_table_that_was_chosen(monkeypatch):
    mixed = replace(TORCH, name="mixed", vision_attention=lambda: None)
    monkeypatch.setattr(backend, "choose", lambda device: mixed)
    triton = [choice.op for choice in backend.describe(CUDA) if "Triton" in choice.kernel]
    assert triton == ["vision attention"]


def test_asking_what_runs_on_a_cpu_imports_no_kernels():
    program = (
        "import sys, infinitevl\nfrom infinitevl.ops.backend import describe\ndescribe('cpu')\n"
        "assert not [name for name in sys.modules if name.startswith('infinitevl.ops.triton')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
