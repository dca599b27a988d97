"""Weights laid out for speed: projections that read the same input become one product.

The parameters keep their names, shapes and values and become views of the larger weight, so nothing is held
twice and a state dict stays what it was. Whatever would part them (a move to another device, a new module in
the place of a projection) undoes the layout first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from infinitevl.errors import InputError
from infinitevl.ops.backend import choose
from infinitevl.ops.kernels import TORCH, Kernels
from infinitevl.ops.trainable import trainable

# Inner widths of feed-forwards are filled up to a multiple of this with zeros: 3420 makes products slow.
_MULTIPLE = 32


@dataclass(frozen=True)
class Layout:
    """What a layer runs on once its weights are laid out: kernels, and weights by name."""

    kernels: Kernels
    weights: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.weights[name]


class Fusable(nn.Module):
    """A layer that can lay out its weights (`_lay_out`) and runs without gradients on the result."""

    layout: Layout | None

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["layout"] = None
        self.kernels = TORCH

    def fuse_(self, kernels: Kernels) -> None:
        """Lay the weights out anew and run on `kernels` from here on, where no gradient is recorded."""
        self.unfuse_()
        self.__dict__["layout"] = Layout(kernels, self._lay_out())

    def unfuse_(self) -> None:
        """Give every parameter memory of its own again."""
        if self.layout is None:
            return
        self.__dict__["layout"] = None
        for parameter in self.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)

    def _lay_out(self) -> dict[str, Any]:
        raise NotImplementedError

    def _fast(self) -> Layout | None:
        """The layout, unless gradients are wanted, which the single parameters must receive."""
        return None if torch.is_grad_enabled() else self.layout

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.unfuse_()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "layout": None}  # a copy's parameters are views of nothing

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) and self.__dict__.get("layout") is not None:
            self.unfuse_()
        super().__setattr__(name, value)


def fuse_(model: nn.Module, kernels: Kernels | None = None) -> Kernels:
    """Lay out every layer of `model` that can be, for `kernels` (default: the best of its device).

    Returns:
        The kernels.

    Raises:
        InputError: a projection was replaced (an adapter, say): merge it first.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Fusable)]
    for layer in layers:
        _check_plain(layer)
    chosen = choose(next(model.parameters()).device) if kernels is None else kernels
    for layer in layers:
        layer.fuse_(chosen)
    return chosen


@contextmanager
def training_kernels(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it the single projections run on kernels that train fast, with inner products in `dtype`."""
    layers = [layer for layer in model.modules() if isinstance(layer, Fusable)]
    before = [layer.kernels for layer in layers]
    for layer in layers:
        layer.kernels = trainable(dtype)
    try:
        yield
    finally:
        for layer, kernels in zip(layers, before, strict=True):
            layer.kernels = kernels


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Within it every parameter has memory of its own; afterwards layouts are as they were."""
    fused = [
        (layer, layer.layout)
        for layer in model.modules()
        if isinstance(layer, Fusable) and layer.layout is not None
    ]
    for layer, _ in fused:
        layer.unfuse_()
    try:
        yield
    finally:
        for layer, layout in fused:
            layer.fuse_(layout.kernels)


def _check_plain(layer: nn.Module) -> None:
    for name, child in layer.named_children():
        if name.endswith("_proj") and type(child) is not nn.Linear:
            raise InputError(
                f"{name} is a {type(child).__name__}, not a plain projection, and cannot be laid out for "
                "speed. Merge adapters into the model first (merge_and_unload)."
            )


def stack_(parameters: Sequence[Tensor], num_rows: int | None = None) -> Tensor:
    """Parameters [n_i, ...] one below the other in one tensor, of which they become views.

    Args:
        num_rows: each parameter takes this many rows, the last ones zero; None: as many as it has.
    """
    counts = [len(parameter) if num_rows is None else num_rows for parameter in parameters]
    first = parameters[0]
    stacked = torch.zeros(sum(counts), *first.shape[1:], dtype=first.dtype, device=first.device)
    for parameter, part in zip(parameters, stacked.split(counts), strict=True):
        part[: len(parameter)].copy_(parameter.data)
        parameter.data = part[: len(parameter)]
    return stacked


def widen_(parameter: Tensor) -> Tensor:
    """A weight [n, m] with zero columns up to a good width, of which the parameter becomes a view."""
    rows, columns = parameter.shape
    wide = torch.zeros(rows, padded(columns), dtype=parameter.dtype, device=parameter.device)
    wide[:, :columns].copy_(parameter.data)
    parameter.data = wide[:, :columns]
    return wide


def padded(width: int) -> int:
    """The next multiple of 32."""
    return -(-width // _MULTIPLE) * _MULTIPLE
