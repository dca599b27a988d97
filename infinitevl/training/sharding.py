"""Where trained weights lie while a run computes: whole in every process, or a part in each (FSDP2).

The optimizer moves float32 weights (`trained`) in any case; matrix products read them in the stage's dtype.
There are three ways, because the cheapest one depends on the run. `Copied`, one process: bfloat16 copies of
the matrices are made once a step, where autocast would cast them again in every pass of every batch.
`Replicated`, several processes: torch's DDP exchanges the gradients of the very weights that it wraps, so
copies cannot stand in between, and autocast casts. `Sharded`, several processes with too little memory for
whole weights: FSDP2 casts while it gathers a layer. All three learn the same, which tests show.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

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


class Sharding:
    """A module made ready for a run. As it stands here, one process holds all weights.

    module: what computes the loss. trained: what the optimizer moves, float32, by the names of the module's
    weights.
    """

    def __init__(self, module: nn.Module, trained: dict[str, nn.Parameter]):
        self.module: Any = module
        self.trained = trained

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Keeps gradients of backward passes in this process; the pass after it exchanges them."""
        return contextlib.nullcontext()

    def reduce_gradients(self) -> None:
        """Completes the gradients of `trained`, after the last backward pass of a step."""

    def gradient_norm(self) -> Tensor:
        """Returns the norm of the whole gradient, on the device."""
        return get_total_norm(_gradients(self.trained.values()))

    def update_module(self) -> None:
        """Lets the module compute with the weights that the optimizer has moved."""

    def gather(self, name: str, part: Tensor) -> Tensor | None:
        """Joins the parts that processes hold of the trained weight `name`, or of a moment of it.

        Returns the whole in the first process and None in the others. All processes must call it.
        """
        return part.detach()

    def local_part(self, name: str, whole: Tensor) -> Tensor:
        """Returns what this process holds of a whole weight, or of a moment of it."""
        return whole

    def restore_module(self) -> None:
        """Gives the module the trained weights themselves, at the end of a run."""


def make_sharding(
    module: nn.Module, accelerator: Accelerator, sharding: str, dtype: torch.dtype | None
) -> Sharding:
    """Chooses one of the three ways.

    Args:
        sharding: NONE, FSDP, or GRAD_OP, which keeps layers whole from their forward to their backward pass.
        dtype: of products, None for that of the weights.
    """
    if sharding != NONE and accelerator.num_processes > 1:
        return Sharded(module, accelerator.device, dtype, reshard=sharding == FSDP)
    if dtype is None or accelerator.num_processes > 1:
        return Replicated(module, accelerator)
    return Copied(module, dtype)


class Replicated(Sharding):
    """Holds all weights in every process, and averages gradients once a step (DDP).

    A single process keeps its module as it is.
    """

    def __init__(self, module: nn.Module, accelerator: Accelerator):
        super().__init__(accelerator.prepare(module), trained_weights(module))
        self.accelerator = accelerator

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        return self.accelerator.no_sync(self.module)

    def gather(self, name: str, part: Tensor) -> Tensor | None:
        return part.detach() if self.accelerator.is_main_process else None


class Copied(Sharding):
    """Gives the products of one process copies of the matrices in `dtype`, cast once a step.

    Gradients come out as autocast would have made them, and are added up in float32. Embeddings are read as
    they are, because autocast leaves them alone too.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        used = trained_weights(module)
        looked_up = {each.weight for each in module.modules() if isinstance(each, nn.Embedding)}
        copied = {name: w for name, w in used.items() if w.dim() == 2 and w not in looked_up}
        super().__init__(module, used | {name: nn.Parameter(w.detach()) for name, w in copied.items()})
        self.copies = [(copy, self.trained[name]) for name, copy in copied.items()]
        for copy, weight in self.copies:
            copy.data = weight.detach().to(dtype)
            copy.register_post_accumulate_grad_hook(_adds_to(weight))

    @torch.no_grad()
    def update_module(self) -> None:
        torch._foreach_copy_([copy for copy, _ in self.copies], [weight for _, weight in self.copies])

    def restore_module(self) -> None:
        for copy, weight in self.copies:
            copy.data = weight.detach()


class Sharded(Sharding):
    """Holds a part of each matrix of the decoder's layers in every process (FSDP2).

    A layer is whole while it computes. With `reshard` it drops the other parts after its forward pass, and
    gathers them again for its backward pass.

    All else stays whole in every process: vectors and convolution weights, because they are small and compute
    in float32; what is frozen outside of the layers (vision encoder, embedding, LM head), because a process
    whose batch has no picture would leave the others waiting for its part.
    """

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype | None, *, reshard: bool):
        _shard(module, init_device_mesh(device.type, (dist.get_world_size(),)), dtype, reshard)
        weights = trained_weights(module)
        self.shards = {name: weight for name, weight in weights.items() if isinstance(weight, DTensor)}
        with torch.no_grad():
            # plain tensors in the same memory: an optimizer is slow to see through hundreds of DTensors
            parts = {name: nn.Parameter(shard.to_local()) for name, shard in self.shards.items()}
        super().__init__(module, weights | parts)
        self.vectors = [weight for name, weight in weights.items() if name not in parts]

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)

    def reduce_gradients(self) -> None:
        for name, shard in self.shards.items():
            gradient = shard.grad
            self.trained[name].grad = gradient.to_local() if isinstance(gradient, DTensor) else None
            shard.grad = None
        self._average_vectors()

    def _average_vectors(self) -> None:
        """Exchanges the gradients of what is not sharded, in one piece."""
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in self.vectors]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        sizes = [gradient.numel() for gradient in gradients]
        for vector, gradient in zip(self.vectors, flat.split(sizes), strict=True):
            vector.grad = gradient.view_as(vector)

    def gradient_norm(self) -> Tensor:
        parts = _gradients(self.trained[name] for name in self.shards)
        squares = get_total_norm(parts).square()
        dist.all_reduce(squares)
        return (squares + get_total_norm(_gradients(self.vectors)).to(squares).square()).sqrt()

    @torch.no_grad()
    def gather(self, name: str, part: Tensor) -> Tensor | None:
        if name not in self.shards:
            return part.detach().cpu() if dist.get_rank() == 0 else None
        shard = self.shards[name]
        everywhere = DTensor.from_local(
            part.detach(), shard.device_mesh, shard.placements, shape=shard.shape, stride=shard.stride()
        ).full_tensor()
        return everywhere.cpu() if dist.get_rank() == 0 else None

    def local_part(self, name: str, whole: Tensor) -> Tensor:
        if name not in self.shards:
            return whole
        shard = self.shards[name]
        placed = whole.to(self.trained[name].device)
        return distribute_tensor(placed, shard.device_mesh, shard.placements, src_data_rank=None).to_local()


def _shard(module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None, reshard: bool) -> None:
    """Makes each decoder layer a group of FSDP2, and the module their root, in place."""
    # inputs stay as they are: angles are float32 whatever the products are
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    layers = [each for each in module.modules() if isinstance(each, DecoderLayer)]
    inside = {weight for layer in layers for weight in layer.parameters() if weight.dim() == 2}
    kept = {weight for weight in module.parameters() if weight not in inside}
    outside = [name for name, weight in module.named_parameters() if weight.requires_grad and weight in kept]
    assert not any(module.get_parameter(name).dim() == 2 for name in outside), (
        "matrices train in layers alone"
    )
    for each in (*layers, module):
        fully_shard(each, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, ignored_params=kept)


def trained_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the weights that receive gradients, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def _gradients(weights: Iterable[nn.Parameter]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def _adds_to(weight: nn.Parameter) -> Any:
    """Returns a hook that moves a copy's gradient to the weight."""

    def move(copy: Tensor) -> None:
        assert copy.grad is not None
        if weight.grad is None:
            weight.grad = copy.grad.to(weight.dtype)
        else:
            weight.grad.add_(copy.grad)
        copy.grad = None

    return move
