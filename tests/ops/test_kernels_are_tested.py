"""Tests of kernels need Triton, which a CPU build of torch does not bring: say so where it is absent."""

import os

import pytest
import torch

from infinitevl.ops.table import has_triton


def test_kernels_are_tested():
    if not has_triton():
        pytest.skip("needs triton: pip install triton==3.6.0 beside a CPU build of torch")
    # tests/ops/triton needs one of these, set before triton is imported
    assert torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1"
