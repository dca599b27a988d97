"""Where trained weights lie while a stage runs: whole in every process, or a part in each (FSDP2).

What the optimizer moves (`trained`) is float32 in any case. Matrices that products read are in the stage's
precision: copies that are made once a step (`Copied`), or gathered layer by layer (`Sharded`).
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from infinitevl.model.decoder import DecoderLayer

NONE, FSDP, GRAD_OP = "none", "fsdp", "fsdp-grad-op"


class Spread(Protocol):
    """A lesson made ready for a run.

    lesson: what is called. trained: what the optimizer moves, float32, by the names of the lesson's weights.
    """

    lesson: Any
    trained: dict[str, nn.Parameter]

    def accumulating(self) -> contextlib.AbstractContextManager[Any]:
        """Within it backward passes keep their gradients in this process; the one after it exchanges them."""

    def collect(self) -> None:
        """After the last backward pass of a step: see that `trained` has the gradients."""

    def norm(self) -> Tensor:
        """Of the whole gradient, on the device."""

    def publish(self) -> None:
        """After the optimizer's step: see that the lesson computes with the new weights."""

    def whole(self, name: str, part: Tensor) -> Tensor | None:
        """What all processes hold of the trained weight `name` (or of a moment of it), in the first process;
        None in the others. All must ask."""

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What this process holds of it."""

    def restore(self) -> None:
        """The run is over: see that the lesson's weights are the trained ones."""


def spread(
    lesson: nn.Module, accelerator: Accelerator, sharding: str, precision: torch.dtype | None
) -> Spread:
    """The way that fits.

    Args:
        sharding: NONE, FSDP, or GRAD_OP, where layers stay whole from their forward to their backward pass.
        precision: of products, None for that of the weights.
    """
    if sharding != NONE and accelerator.num_processes > 1:
        return Sharded(lesson, accelerator.device, precision, reshard=sharding == FSDP)
    if precision is None or accelerator.num_processes > 1:
        return Replicated(lesson, accelerator)
    return Copied(lesson, precision)


class Replicated:
    """Every process holds all weights; gradients are averaged once a step. One process is left alone."""

    def __init__(self, lesson: nn.Module, accelerator: Accelerator):
        self.trained = trained_weights(lesson)
        self.lesson = accelerator.prepare(lesson) if self.trained else lesson
        self.accelerator = accelerator

    def accumulating(self) -> contextlib.AbstractContextManager[Any]:
        return self.accelerator.no_sync(self.lesson)

    def collect(self) -> None:
        pass

    def norm(self) -> Tensor:
        return get_total_norm(_gradients(self.trained))

    def publish(self) -> None:
        pass

    def whole(self, name: str, part: Tensor) -> Tensor | None:
        return part.detach() if self.accelerator.is_main_process else None

    def part(self, name: str, whole: Tensor) -> Tensor:
        return whole

    def restore(self) -> None:
        pass


class Copied:
    """One process, whose products read copies of the matrices: cast once a step instead of in every pass.

    Gradients come out as autocast would have made them, and are added up in float32.
    """

    def __init__(self, lesson: nn.Module, precision: torch.dtype):
        self.lesson = lesson
        used = trained_weights(lesson)
        self.trained = {
            name: nn.Parameter(weight.detach()) if weight.dim() == 2 else weight
            for name, weight in used.items()
        }
        self.copies = [(weight, self.trained[name]) for name, weight in used.items() if weight.dim() == 2]
        for copy, weight in self.copies:
            copy.data = weight.detach().to(precision)
            copy.register_post_accumulate_grad_hook(_adds_to(weight))

    def accumulating(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def collect(self) -> None:
        pass

    def norm(self) -> Tensor:
        return get_total_norm(_gradients(self.trained))

    @torch.no_grad()
    def publish(self) -> None:
        torch._foreach_copy_([copy for copy, _ in self.copies], [weight for _, weight in self.copies])

    def whole(self, name: str, part: Tensor) -> Tensor | None:
        return part.detach()

    def part(self, name: str, whole: Tensor) -> Tensor:
        return whole

    def restore(self) -> None:
        for copy, weight in self.copies:
            copy.data = weight.detach()


class Sharded:
    """Every process holds a part of each matrix of the decoder's layers; a layer is whole while it computes.

    With `reshard` it gives the other parts back after its forward pass, and gathers them again later.

    All else stays whole in every process: vectors and convolution weights, because they are small and compute
    in float32; what is frozen outside of the layers (vision encoder, embedding, LM head), because a process
    whose batch has no picture would leave the others waiting for its part.
    """

    def __init__(
        self, lesson: nn.Module, device: torch.device, precision: torch.dtype | None, *, reshard: bool
    ):
        self.lesson: Any = lesson
        _shard(lesson, init_device_mesh(device.type, (dist.get_world_size(),)), precision, reshard)
        weights = trained_weights(lesson)
        self.shards = {name: weight for name, weight in weights.items() if isinstance(weight, DTensor)}
        with torch.no_grad():
            # plain tensors in the same memory: an optimizer is slow to see through hundreds of DTensors
            parts = {name: nn.Parameter(shard.to_local()) for name, shard in self.shards.items()}
        self.trained = weights | parts
        self.vectors = [weight for name, weight in weights.items() if name not in parts]

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        self.lesson.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.lesson.set_requires_gradient_sync(True)

    def collect(self) -> None:
        for name, shard in self.shards.items():
            gradient = shard.grad
            self.trained[name].grad = gradient.to_local() if isinstance(gradient, DTensor) else None
            shard.grad = None
        self._average_vectors()

    def _average_vectors(self) -> None:
        """Exchange the gradients of what is not sharded, in one piece."""
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in self.vectors]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        sizes = [gradient.numel() for gradient in gradients]
        for vector, gradient in zip(self.vectors, flat.split(sizes), strict=True):
            vector.grad = gradient.view_as(vector)

    def norm(self) -> Tensor:
        parts = _gradients({name: self.trained[name] for name in self.shards})
        squares = get_total_norm(parts).square()
        dist.all_reduce(squares)
        vectors = [vector.grad for vector in self.vectors if vector.grad is not None]
        return (squares + get_total_norm(vectors).to(squares).square()).sqrt()

    def publish(self) -> None:
        pass

    @torch.no_grad()
    def whole(self, name: str, part: Tensor) -> Tensor | None:
        if name not in self.shards:
            return part.detach().cpu() if dist.get_rank() == 0 else None
        shard = self.shards[name]
        everywhere = DTensor.from_local(
            part.detach(), shard.device_mesh, shard.placements, shape=shard.shape, stride=shard.stride()
        ).full_tensor()
        return everywhere.cpu() if dist.get_rank() == 0 else None

    def part(self, name: str, whole: Tensor) -> Tensor:
        if name not in self.shards:
            return whole
        shard = self.shards[name]
        placed = whole.to(self.trained[name].device)
        return distribute_tensor(placed, shard.device_mesh, shard.placements, src_data_rank=None).to_local()

    def restore(self) -> None:
        pass


def _shard(lesson: nn.Module, mesh: DeviceMesh, precision: torch.dtype | None, reshard: bool) -> None:
    """Make each decoder layer a group of FSDP2, and the lesson their root, in place."""
    # inputs stay as they are: angles are float32 whatever the products are
    policy = MixedPrecisionPolicy(precision, torch.float32, cast_forward_inputs=False)
    layers = [module for module in lesson.modules() if isinstance(module, DecoderLayer)]
    inside = {weight for layer in layers for weight in layer.parameters() if weight.dim() == 2}
    kept = {weight for weight in lesson.parameters() if weight not in inside}
    outside = [name for name, weight in lesson.named_parameters() if weight.requires_grad and weight in kept]
    assert not any(lesson.get_parameter(name).dim() == 2 for name in outside), (
        "matrices train in layers alone"
    )
    for module in (*layers, lesson):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, ignored_params=kept)


def trained_weights(lesson: nn.Module) -> dict[str, nn.Parameter]:
    """What receives gradients, by name."""
    return {name: weight for name, weight in lesson.named_parameters() if weight.requires_grad}


def _gradients(weights: dict[str, nn.Parameter]) -> Iterable[Tensor]:
    return [weight.grad for weight in weights.values() if weight.grad is not None]


def _adds_to(weight: nn.Parameter) -> Any:
    """A hook that moves a copy's gradient to the weight."""

    def move(copy: Tensor) -> None:
        assert copy.grad is not None
        if weight.grad is None:
            weight.grad = copy.grad.to(weight.dtype)
        else:
            weight.grad.add_(copy.grad)
        copy.grad = None

    return move
