"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before triton is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

try:
    import triton
except ImportError:  # tests/ops/test_kernels_are_tested.py says so
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> str:
    return "cpu" if triton.knobs.runtime.interpret else "cuda"


@pytest.fixture(autouse=True)
def loop_bounds_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter of Triton 3.6 keeps scalars as arrays of one element; numpy 2.4 counts to numbers."""
    if not triton.knobs.runtime.interpret:
        return
    from triton.runtime import interpreter

    def patch(tensor, scope, original=interpreter._patch_lang_tensor):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)


@pytest.fixture(autouse=True)
def products_of_bfloat16_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter of Triton 3.6 multiplies the bits of bfloat16 matrices as if they were integers."""
    if not triton.knobs.runtime.interpret:
        return
    from triton.runtime import interpreter

    def numbers(x):
        if x.dtype.scalar != triton.language.bfloat16:
            return x
        bits = x.data.astype("uint32") << 16
        return interpreter.TensorHandle(bits.view("float32"), triton.language.float32)

    def dot(self, a, b, *args, original=interpreter.InterpreterBuilder.create_dot):
        return original(self, numbers(a), numbers(b), *args)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@pytest.fixture(autouse=True)
def float32_is_rounded_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; the interpreter of Triton 3.6 cuts the bits off."""
    if not triton.knobs.runtime.interpret:
        return
    from triton.runtime import interpreter

    def convert(data, source, target, rounding, original=interpreter._convert_float):
        if (source, target) != (triton.language.float32, triton.language.bfloat16):
            return original(data, source, target, rounding)
        return torch.from_numpy(data.view("float32")).bfloat16().view(torch.int16).numpy().view("uint16")

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture(autouse=True)
def accesses_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that reads or writes what lies between its tensors fails the test, and says where."""
    if triton.knobs.runtime.interpret:
        from tests.ops.triton.bounds import watch

        watch(monkeypatch)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has written yet reads as NaN."""
    fresh = {name: getattr(torch, name) for name in ("empty", "empty_like")}
    methods = {name: getattr(torch.Tensor, name) for name in ("new_empty",)}

    def fill(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    for name, make in fresh.items():
        monkeypatch.setattr(torch, name, fill(make))
    for name, make in methods.items():
        monkeypatch.setattr(torch.Tensor, name, fill(make))
