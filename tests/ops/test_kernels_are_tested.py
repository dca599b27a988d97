"""Tests of kernels need Triton, which a CPU build of torch does not bring: say so where it is absent."""

import pytest

from infinitevl.ops.table import has_triton


def test_kernels_are_tested():
    if not has_triton():
        pytest.skip("needs triton: pip install triton==3.6.0 beside a CPU build of torch")
