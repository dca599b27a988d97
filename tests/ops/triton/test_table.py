"""On CUDA the Triton kernels run everything."""

import torch

from infinitevl.ops import backend
from infinitevl.ops.triton.table import TRITON


def test_on_cuda_kernels_run_everything_but_angles(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert backend.choose(torch.device("cuda")) is TRITON
    plain = [choice.op for choice in backend.describe("cuda") if "Triton" not in choice.kernel]
    assert plain == ["rotary angles"]
