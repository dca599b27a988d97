"""Stage 1: the student learns its teacher's layers (1a), then its next tokens (1b)."""

import torch
from torch import Tensor

from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.losses import layer_loss, logits_loss
from infinitevl.training.stages.inputs import Batch, answers, embed_batch, longest, picked, real_tokens

Model = InfiniteVLForConditionalGeneration


def distill_layers(
    student: Model, teacher: Model, batch: Batch, same: frozenset[int] = frozenset()
) -> Tensor:
    """Computes the loss of stage 1a: each layer gets its teacher's input and learns its output.

    Args:
        same: layers that have the teacher's weights (`same_layers`). Where a window holds every sequence of
            the batch, their loss is zero and not computed.

    Returns:
        Mean over layers of the squared error, times 1000, summed over real tokens.
    """
    inputs = embed_batch(teacher, batch)
    counts = real_tokens(batch)
    x, length = inputs.embeds, longest(batch)
    losses: list[Tensor] = []
    pairs = zip(inputs.layers(student), inputs.layers(teacher), strict=True)
    for number, (layer, taught_layer) in enumerate(pairs):
        with torch.no_grad():
            wanted = taught_layer(x)
        if number in same and layer.sees(length) == taught_layer.sees(length):
            losses.append(x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32)))
            x = wanted
            continue
        with torch.set_grad_enabled(layer.trains and torch.is_grad_enabled()):
            losses.append(layer_loss(layer(x), wanted, counts))
        x = wanted
    return torch.stack(losses).mean()


def distill_logits(
    student: Model, teacher: Model, batch: Batch, temperature: float, all_tokens: bool = False
) -> Tensor:
    """Computes the loss of stage 1b: the student learns the teacher's distribution of next tokens.

    Args:
        all_tokens: learn from every real token, as the published run did, and not from answers alone.

    Returns:
        KL(teacher || student) at the temperature, times its square, summed over those tokens.
    """
    inputs = embed_batch(teacher, batch)
    asked = (real_tokens(batch) if all_tokens else answers(batch)[0]).flatten().nonzero()[:, 0]
    with torch.no_grad():
        wanted = picked(inputs.through(teacher), asked)
    given = picked(inputs.through(student), asked)
    return logits_loss(given, student.lm_head.weight, wanted, teacher.lm_head.weight, temperature)


def share_frozen_(student: Model, teacher: Model) -> int:
    """Keeps frozen weights that both models have in memory once; returns the bytes saved."""
    taught, saved = dict(teacher.named_parameters()), 0
    for name, parameter in student.named_parameters():
        other = taught.get(name)
        if other is not None and not parameter.requires_grad and _same(parameter, other):
            saved += parameter.nbytes if parameter.data_ptr() != other.data_ptr() else 0
            parameter.data = other.data
    return saved


def same_layers(student: Model, teacher: Model) -> frozenset[int]:
    """Returns the numbers of the layers of which both models share all weights after `share_frozen_`."""
    decoders = (student.model.language_model.layers, teacher.model.language_model.layers)
    return frozenset(
        number
        for number, layers in enumerate(zip(*decoders, strict=True))
        if len({tuple(weight.data_ptr() for weight in layer.parameters()) for layer in layers}) == 1
    )


def _same(a: Tensor, b: Tensor) -> bool:
    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return alike and torch.equal(a, b)
