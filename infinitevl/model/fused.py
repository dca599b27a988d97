"""Weights laid out for speed: projections that read the same input become one product.

The parameters keep their names, shapes and values and become views of the larger weight, so nothing is held
twice and a state dict stays what it was. Whatever would part them (a move to another device, a new module in
the place of a projection) undoes the layout first.

On demand the large weights of the decoder's layers, and in fp8 those of most vision layers, are held in few
bits (`quantization`): then their parameters are hollow, nothing can be undone, and whatever needs their
values is refused.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from infinitevl.errors import InputError
from infinitevl.model.weights import Hollow
from infinitevl.ops.linear.quantized import KINDS, check_quantization, quantize
from infinitevl.ops.table import TORCH, Kernels, choose, trainable

# Inner widths of feed-forwards are filled up to a multiple of this with zeros: 3420 makes products slow.
_MULTIPLE = 32
# Bytes from which a tensor has a block of CUDA's allocator to itself.
_SHARED_BLOCK = 10 * 2**20
_ONE_LAYOUT = threading.RLock()


@dataclass(frozen=True)
class Layout:
    """What a layer runs on once its weights are laid out.

    weights: by name. places: where the parameters' memory was then. quantization: of the large weights, None
    where they are held in full.
    """

    kernels: Kernels
    weights: dict[str, Any]
    places: tuple[int, ...]
    quantization: str | None = None

    def __getitem__(self, name: str) -> Any:
        return self.weights[name]


class Fusable(nn.Module):
    """A layer that can lay out its weights (`_lay_out`) and runs without gradients on the result."""

    layout: Layout | None
    # Names of laid out weights that may be held in few bits, and the kinds of bits that they may be held in.
    quantizable: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = KINDS

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["layout"] = None
        self.kernels = TORCH

    def fuse_(self, kernels: Kernels, quantization: str | None = None) -> None:
        """Run on `kernels` from here on, where no gradient is recorded, with the weights laid out.

        Weights that already are stay where they are: captured graphs read them there.
        """
        layout = self.layout
        if layout is None or layout.places != _places(self):
            self.unfuse_()
            layout = Layout(kernels, self._lay_out(), _places(self))
        if quantization is not None and layout.quantization is None and self.can_be(quantization):
            layout = _quantized(self, layout, quantization)
        self.__dict__["layout"] = replace(layout, kernels=kernels)

    def can_be(self, quantization: str) -> bool:
        """Whether weights of this layer may be held so."""
        return bool(self.quantizable) and quantization in self.quantizations

    @torch.inference_mode(False)  # weights of inference mode could not be trained
    def unfuse_(self) -> None:
        """Give every parameter memory of its own again.

        Raises:
            InputError: the weights are held in few bits.
        """
        if self.layout is None:
            return
        self.check_whole("changed, moved or saved")
        self.__dict__["layout"] = None
        for parameter in self.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)

    def check_whole(self, what: str) -> None:
        """Raise InputError, saying what cannot be done, where weights are held in few bits."""
        if self.layout is not None and self.layout.quantization is not None:
            raise InputError(
                f"the weights of this model are held in {self.layout.quantization}, in which they cannot be "
                f"{what}. Load the model again, in full precision, for that."
            )

    def _lay_out(self) -> dict[str, Any]:
        raise NotImplementedError

    def _fast(self) -> Layout | None:
        """The layout, unless gradients are wanted, which the single parameters must receive."""
        if torch.is_grad_enabled():
            self.check_whole("trained (to run it, use torch.no_grad())")
            return None
        return self.layout

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.unfuse_()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *args: Any) -> None:
        self.check_whole("saved")
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.check_whole("changed")
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        self.check_whole("copied")
        return {**self.__dict__, "layout": None}  # a copy's parameters are views of nothing

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) and self.__dict__.get("layout") is not None:
            self.unfuse_()
        super().__setattr__(name, value)


@torch.inference_mode(False)
def fuse_(model: nn.Module, kernels: Kernels | None = None, quantization: str | None = None) -> Kernels:
    """Lay out every layer of `model` that can be, for `kernels` (default: the best of its device).

    Nobody may run the model meanwhile, unless it is laid out already.

    Args:
        quantization: hold the large weights of the decoder's layers in "int8", "int4" or "fp8" (see
            `ops.linear.quantized`), in "fp8" those of the vision layers too, for good; None leaves them in
            the precision that they have.

    Returns:
        The kernels.

    Raises:
        InputError: a projection was replaced (an adapter, say): merge it first. Or a quantization that does
            not exist, or comes too late: the model is laid out in another one.
    """
    layers = fusable(model)
    for layer in layers:
        _check_plain(layer)
    if quantization is not None:
        check_quantization(quantization)
        _check_free(model, quantization)
    chosen = choose(next(model.parameters()).device) if kernels is None else kernels
    with _ONE_LAYOUT:
        new = [layer for layer in layers if layer.layout is None]
        placed = {id(p) for layer in layers if layer.layout is not None for p in layer.parameters()}
        small = [p for layer in new for p in layer.parameters() if _shares_block(p) and id(p) not in placed]
        with _lent_to_host(small) as fetch:
            # Large ones first: small weights fill what they leave.
            for layer in sorted(new, key=_num_bytes, reverse=True):
                fetch(layer.parameters())
                layer.fuse_(chosen, quantization)
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()  # blocks of single weights are too small for the next layer's
        for layer in layers:
            layer.fuse_(chosen, quantization)
    return chosen


@contextmanager
def _lent_to_host(
    parameters: Iterable[nn.Parameter],
) -> Iterator[Callable[[Iterable[nn.Parameter]], None]]:
    """Within it the parameters are on the host, until `fetch(some)` brings some of them back.

    The allocator of CUDA puts two or more small weights into a block, which stays as long as one of them
    does: those that a layout leaves where they are would hold the memory of those that it moves.
    """
    homes: dict[nn.Parameter, torch.device] = {}

    def fetch(wanted: Iterable[nn.Parameter]) -> None:
        failed = None
        for parameter in wanted:
            if home := homes.pop(parameter, None):
                try:
                    parameter.data = parameter.data.to(home, copy=True)
                except torch.cuda.OutOfMemoryError as error:  # the others may still fit
                    failed = error
        if failed is not None:
            raise failed

    try:
        for parameter in parameters:
            if parameter not in homes:
                homes[parameter] = parameter.device
                parameter.data = parameter.data.to("cpu", copy=True)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        yield fetch
    finally:
        fetch(list(homes))


def _shares_block(parameter: nn.Parameter) -> bool:
    """Whether CUDA's allocator puts other tensors beside it."""
    return parameter.is_cuda and parameter.nbytes < _SHARED_BLOCK


@torch.inference_mode(False)
def fuse_onto_(model: nn.Module, device: torch.device, quantization: str) -> Kernels:
    """Move `model` to `device` quantized, as `fuse_` has it; one layer at most is there in full."""
    check_quantization(quantization)
    quantizable = [layer for layer in fusable(model) if layer.can_be(quantization)]
    kept = {id(parameter) for layer in quantizable for parameter in layer.parameters()}
    model._apply(lambda tensor: tensor if id(tensor) in kept else tensor.to(device))
    kernels = choose(device)
    for layer in quantizable:
        layer.to(device)
        layer.fuse_(kernels, quantization)
    return fuse_(model, kernels, quantization)


def unfuse_(model: nn.Module) -> None:
    """Undo `fuse_`: InputError where weights are held in few bits."""
    for layer in fusable(model):
        layer.unfuse_()


def fusable(model: nn.Module) -> list[Fusable]:
    """The layers of `model` whose weights can be laid out."""
    return [layer for layer in model.modules() if isinstance(layer, Fusable)]


def quantization_of(model: nn.Module) -> str | None:
    """What the large weights are held in; None for the precision that they were loaded in."""
    layouts = (layer.layout for layer in fusable(model))
    return next((layout.quantization for layout in layouts if layout and layout.quantization), None)


@contextmanager
def training_kernels(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it the single projections run on kernels that train fast, with inner products in `dtype`."""
    layers = fusable(model)
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
    """Within it every parameter has memory of its own, on the host; afterwards all lies where it did.

    Raises:
        InputError: weights are held in few bits.
    """
    layers = [layer for layer in fusable(model) if layer.layout is not None]
    for layer in layers:
        layer.check_whole("saved")
    layouts = [layer.layout for layer in layers]
    views = {parameter: parameter.data for layer in layers for parameter in layer.parameters()}
    for layer in layers:
        layer.__dict__["layout"] = None
    for parameter, view in views.items():
        parameter.data = view.to("cpu", copy=True, memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        for parameter, view in views.items():
            parameter.data = view
        for layer, layout in zip(layers, layouts, strict=True):
            layer.__dict__["layout"] = layout


def _places(layer: nn.Module) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in layer.parameters())


def _num_bytes(layer: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in layer.parameters())


def _quantized(layer: Fusable, layout: Layout, quantization: str) -> Layout:
    """The layout with the layer's large weights in few bits, and their parameters hollow."""
    weights = dict(layout.weights)
    for name in layer.quantizable:
        _hollow_out(layer, weights[name])
        weights[name] = quantize(weights[name], quantization)
    return Layout(layout.kernels, weights, _places(layer), quantization)


def _hollow_out(layer: nn.Module, weight: Tensor) -> None:
    """Let go of every parameter that lies in `weight`."""
    memory = range(weight.data_ptr(), weight.data_ptr() + weight.nbytes)
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.data_ptr() in memory:
                setattr(module, name, Hollow.of(parameter))


def _check_free(model: nn.Module, quantization: str) -> None:
    """See that the weights can still be held in `quantization`, and lie where that can be done."""
    places = {str(parameter.device) for parameter in model.parameters()}
    if len(places) > 1 or "meta" in places:
        raise InputError(
            f"{quantization} needs all weights on one device, and they are on {', '.join(sorted(places))}. "
            "Load the model without a device map."
        )
    for layer in fusable(model):
        held = layer.layout.quantization if layer.layout is not None else quantization
        if layer.can_be(quantization) and held != quantization:
            raise InputError(
                f"{quantization} was asked for, but this model already runs in {held or 'full precision'}. "
                "Load it again to run it in another way."
            )


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
