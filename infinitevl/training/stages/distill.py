"""Stage 1: a student learns from its teacher, layer by layer (1a), then by its words (1b)."""

import torch
from torch import Tensor

from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.losses import layer_loss, logits_loss
from infinitevl.training.stages.reading import Batch, answers, read, real_tokens

Model = InfiniteVLForConditionalGeneration


def distill_layers(student: Model, teacher: Model, batch: Batch) -> Tensor:
    """Stage 1a: each student layer gets the teacher's input of that layer, and should give its output.

    Returns:
        Mean over layers of the squared error, times 1000, summed over real tokens.
    """
    reading = read(teacher, batch)
    counts = real_tokens(batch)
    x, losses = reading.embeds, []
    for layer, taught in zip(reading.layers(student), reading.layers(teacher), strict=True):
        with torch.no_grad():
            wanted = taught(x)
        with torch.set_grad_enabled(layer.trains and torch.is_grad_enabled()):
            losses.append(layer_loss(layer(x), wanted, counts))
        x = wanted
    return torch.stack(losses).mean()


def distill_logits(
    student: Model, teacher: Model, batch: Batch, temperature: float, all_tokens: bool = False
) -> Tensor:
    """Stage 1b: the student's next tokens should be as likely as the teacher's.

    Args:
        all_tokens: learn from every real token, as the published run did, and not from answers alone.

    Returns:
        KL(teacher || student) at the temperature, times its square, summed over those tokens.
    """
    reading = read(teacher, batch)
    asked = real_tokens(batch) if all_tokens else answers(batch)[0]
    with torch.no_grad():
        wanted = reading.through(teacher)[asked]
    given = reading.through(student)[asked]
    return logits_loss(given, student.lm_head.weight, wanted, teacher.lm_head.weight, temperature)


def share_frozen_(student: Model, teacher: Model) -> int:
    """Hold in memory once what both have and nobody trains; returns the bytes that this saved."""
    taught, saved = dict(teacher.named_parameters()), 0
    for name, parameter in student.named_parameters():
        other = taught.get(name)
        if other is not None and not parameter.requires_grad and _same(parameter, other):
            saved += parameter.nbytes if parameter.data_ptr() != other.data_ptr() else 0
            parameter.data = other.data
    return saved


def _same(a: Tensor, b: Tensor) -> bool:
    alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return alike and torch.equal(a, b)
