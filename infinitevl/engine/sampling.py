"""From logits to tokens, and from tokens to text that can be shown while it grows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infinitevl.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated.

    Args:
        max_new_tokens: longest answer, at least 1.
        temperature: 0 always takes the likeliest token.
        top_p: draw from the likeliest tokens that together have this probability, in (0, 1].

    Raises:
        InputError: a value outside these ranges.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if not self.temperature >= 0:
            raise InputError(f"temperature must be 0 (greedy) or more, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}.")


def pick(logits: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each row: logits [B, vocabulary] -> int64 [B]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    ordered, tokens = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    drawn = torch.multinomial(ordered.masked_fill(before >= sampling.top_p, 0.0), 1)
    return tokens.gather(-1, drawn)[:, 0]


class TextBuilder:
    """Turns tokens into text piece by piece, holding back characters that are not complete yet."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self.text = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that it completes, often empty."""
        self._tokens.append(token)
        return self._grow(self._decode().removesuffix("\N{REPLACEMENT CHARACTER}"))

    def finish(self) -> str:
        """Text that was still held back."""
        return self._grow(self._decode())

    def _decode(self) -> str:
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)

    def _grow(self, text: str) -> str:
        piece = text[len(self.text) :]
        self.text += piece
        return piece
