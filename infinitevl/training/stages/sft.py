"""Stages 2 and 3: the student learns answers; in stage 3 long ones, through adapters."""

from torch import Tensor

from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.losses import answer_loss
from infinitevl.training.stages.reading import Batch, answers, read


def sft(student: InfiniteVLForConditionalGeneration, batch: Batch) -> Tensor:
    """Cross-entropy, summed over the tokens of answers."""
    asked, labels = answers(batch)
    hidden = read(student, batch).through(student)[asked]
    return answer_loss(hidden, student.lm_head.weight, labels)
