"""In Triton's interpreter every access of a kernel must meet an element of one of its tensors.

A GPU reads whatever lies behind a tensor, or between the rows of a view, and says nothing.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor


class Elements(NamedTuple):
    """Where the elements of an argument lie.

    start, end: addresses of the first byte and of the one behind the last. axes: (stride in bytes, size), the
    widest stride first, that of the elements last; axes that lie densely in each other are one.
    """

    name: str
    tensor: Tensor
    start: int
    end: int
    axes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Elements":
        item, start = tensor.element_size(), tensor.data_ptr()
        axes = [(item, 1)]
        for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
            inner, count = axes[-1]
            if stride * item == inner * count:
                axes[-1] = inner, count * size
            elif stride > 0 and size > 1:  # all of an expanded axis lies in one place
                axes.append((stride * item, size))
        reach = sum(stride * (size - 1) for stride, size in axes) + item
        end = start + reach if tensor.numel() else start
        return cls(name, tensor, start, end, tuple(reversed(axes)))

    def lacks(self, addresses: np.ndarray) -> np.ndarray:
        """Which of them (int64) are not the first byte of an element."""
        left = addresses - self.start
        outside = (left < 0) | (addresses >= self.end)
        for stride, size in self.axes:
            left = left - np.minimum(left // stride, size - 1) * stride
        return outside | (left != 0)

    def distance(self, address: int) -> int:
        """Bytes from `address` to the nearest one between start and end."""
        return max(self.start - address, address - self.end + 1, 0)

    def place(self, address: int) -> str:
        """Where `address` lies, in words."""
        tensor, offset = self.tensor, (address - self.start) / self.tensor.element_size()
        return f"element {offset:g} of {self.name} {tuple(tensor.shape)}, strides {tensor.stride()}"


def elements_of(name: str, argument: Any) -> Iterator[Elements]:
    """Of a tensor, of tensors in tuples, and of what a descriptor describes."""
    argument = argument.base if isinstance(argument, TensorDescriptor) else argument
    if isinstance(argument, torch.Tensor):
        yield Elements.of(name, argument)
    elif isinstance(argument, tuple):
        for index, part in enumerate(argument):
            yield from elements_of(f"{name}[{index}]", part)


class Bounds:
    """Of the kernel that runs."""

    def __init__(self) -> None:
        self.kernel = "no kernel"
        self.arguments: list[Elements] = []

    def enter(self, kernel: str, arguments: dict[str, Any]) -> None:
        """A kernel starts on these arguments."""
        self.kernel = kernel
        self.arguments = [part for name, given in arguments.items() for part in elements_of(name, given)]

    def check(self, access: str, pointers: Any, mask: Any = None) -> None:
        """Raise IndexError unless each pointer (where the mask holds, if any) meets an element.

        Most accesses stay within one tensor: the first that spans the first address is asked first.
        """
        left = pointers.data.astype(np.int64)
        if mask is not None:
            held = mask if isinstance(mask, np.ndarray) else mask.data  # a descriptor's mask is an array
            left = left[np.broadcast_to(held.astype(bool), left.shape)]
        left = left.ravel()
        if not left.size:
            return
        first = left[0]
        for argument in sorted(self.arguments, key=lambda each: not each.start <= first < each.end):
            left = left[argument.lacks(left)]
            if not left.size:
                return
        places = self._places(int(left[0]))
        raise IndexError(f"{self.kernel}: {access} at {left.size} places in none of its tensors: {places}")

    def _places(self, address: int) -> str:
        """Where an address lies, seen from each tensor; the nearest first."""
        nearest = sorted(self.arguments, key=lambda each: each.distance(address))
        return "; ".join(argument.place(address) for argument in nearest)


def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check every launch in the interpreter from here on.

    Loads and stores without a mask come through those with one.
    """
    bounds, builder = Bounds(), interpreter.InterpreterBuilder

    def host_arguments(self, arguments, named, original=interpreter.GridExecutor._init_args_hst):
        hosts, named_hosts = original(self, arguments, named)
        bounds.enter(self.fn.__name__, dict(zip(self.arg_names, hosts, strict=False)) | named_hosts)
        return hosts, named_hosts

    def load(self, pointers, mask, *rest, original=builder.create_masked_load, **named):
        bounds.check("a load", pointers, mask)
        return original(self, pointers, mask, *rest, **named)

    def store(self, pointers, value, mask, *rest, original=builder.create_masked_store):
        bounds.check("a store", pointers, mask)
        return original(self, pointers, value, mask, *rest)

    def update(self, operation, pointers, value, mask, *rest, original=builder.create_atomic_rmw):
        bounds.check("an atomic update", pointers, mask)
        return original(self, operation, pointers, value, mask, *rest)

    def swap(self, pointers, *rest, original=builder.create_atomic_cas):
        bounds.check("an atomic swap", pointers)
        return original(self, pointers, *rest)

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", host_arguments)
    monkeypatch.setattr(builder, "create_masked_load", load)
    monkeypatch.setattr(builder, "create_masked_store", store)
    monkeypatch.setattr(builder, "create_atomic_rmw", update)
    monkeypatch.setattr(builder, "create_atomic_cas", swap)
