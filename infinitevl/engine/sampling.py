"""From logits to tokens, and from tokens to text that can be shown while it grows."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from infinitevl.errors import InputError

# Below it the likeliest token is as good as certain, and float32 would overflow.
_COLDEST = 1e-5
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated.

    Args:
        max_new_tokens: longest answer, a whole number of at least 1.
        temperature: 0 always takes the likeliest token; all between 0 and 1e-5 is as cold as 1e-5.
        top_p: draw from the likeliest tokens that together have this probability, in (0, 1].

    Raises:
        InputError: a value outside these ranges.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.max_new_tokens, Integral) and self.max_new_tokens >= 1):
            raise InputError(
                f"max_new_tokens must be a whole number of at least 1, not {self.max_new_tokens!r}."
            )
        if not (isinstance(self.temperature, Real) and self.temperature >= 0):
            raise InputError(f"temperature must be 0 (greedy) or more, not {self.temperature!r}.")
        if not (isinstance(self.top_p, Real) and 0 < self.top_p <= 1):
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p!r}.")


def pick(logits: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each row: logits [B, vocabulary] -> int64 [B]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / max(float(sampling.temperature), _COLDEST)).softmax(-1)
    ordered, tokens = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    drawn = torch.multinomial(ordered.masked_fill(before >= sampling.top_p, 0.0), 1)
    return tokens.gather(-1, drawn)[:, 0]


class TextBuilder:
    """Turns tokens into text piece by piece, holding back characters that are not complete yet.

    Each piece is decoded behind the piece before it alone, so that a long answer costs no more per token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # tokens of the last piece
        self._held: list[int] = []
        self.text = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that it completes, often empty."""
        self._held.append(token)
        piece = self._held_text()
        return "" if piece.endswith(_INCOMPLETE) else self._show(piece)

    def finish(self) -> str:
        """Text that was still held back."""
        return self._show(self._held_text())

    def _held_text(self) -> str:
        return self._decode(self._shown + self._held)[len(self._decode(self._shown)) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _show(self, piece: str) -> str:
        self._shown, self._held = self._held, []
        self.text += piece
        return piece
