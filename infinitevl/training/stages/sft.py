"""Stages 2 and 3: the student learns answers; in stage 3 over long sequences, through adapters."""

from torch import Tensor

from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.losses import answer_loss
from infinitevl.training.stages.inputs import Batch, answers, embed_batch, picked


def sft(student: InfiniteVLForConditionalGeneration, batch: Batch) -> Tensor:
    """Computes the cross-entropy, summed over the tokens of answers."""
    asked, labels = answers(batch)
    places = asked.flatten().nonzero()[:, 0]  # before the long way, so that the host does not wait within it
    hidden = embed_batch(student, batch).through(student)
    return answer_loss(picked(hidden, places), student.lm_head.weight, labels)
