"""Makes models ready to train: dtype and device, gradient checkpointing, compile, training kernels."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from infinitevl.model.fused import fuse_, training_kernels
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration

Model = InfiniteVLForConditionalGeneration


def move_(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Moves a model to the device: weights that train in float32, all others in `dtype`."""
    for parameter in model.parameters():
        kept = torch.float32 if parameter.requires_grad else dtype
        parameter.data = parameter.data.to(device, kept)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def checkpoint_layers_(model: Model, count: int | None) -> None:
    """Makes the first `count` decoder layers (None: all) recompute activations in the backward pass."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for block in model.model.visual.blocks:
        block.gradient_checkpointing = False  # frozen: it keeps nothing in any case
    for number, layer in enumerate(model.model.language_model.layers):
        layer.gradient_checkpointing = count is None or number < count


def compile_layers_(model: Model) -> None:
    """Compiles the decoder, one graph for all layers of a kind; a part that fails to compile runs eagerly."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 32
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)


@contextlib.contextmanager
def fast_kernels(student: Model, teacher: Model | None, dtype: torch.dtype) -> Iterator[None]:
    """Runs student and teacher on kernels that train fast; the vision encoder is frozen."""
    reader = student if teacher is None else teacher
    if dtype == torch.bfloat16 and reader.device.type == "cuda":
        fuse_(reader.model.visual)  # half of the work where pictures are many
    with contextlib.ExitStack() as stack:
        for model in (student, teacher):
            if model is not None:
                stack.enter_context(training_kernels(model, dtype))
        yield
