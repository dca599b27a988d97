"""Samples tokens from logits, and decodes tokens to text that can be shown while it grows."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infinitevl.engine.logprobs import MAX_LOGPROBS
from infinitevl.errors import InputError

# Lowest temperature: below, float32 would overflow, and the likeliest token is almost certain anyway.
_COLDEST = 1e-5
# Constants of splitmix64, as signed numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIXING = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated.

    Args:
        max_new_tokens: longest answer, a whole number of at least 1.
        temperature: 0 always takes the likeliest token; values between 0 and 1e-5 count as 1e-5.
        top_p: draw from the likeliest tokens that together have this probability, in (0, 1].
        seed: a whole number; equal seeds draw alike. None takes one from torch's generator.
        logprobs: keep the log-probability of every token, and of this many of the likeliest ones, 0 to 20.

    Raises:
        InputError: a value outside these ranges.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.max_new_tokens, Integral) and self.max_new_tokens >= 1):
            raise InputError(
                f"max_new_tokens must be a whole number of at least 1, not {self.max_new_tokens!r}."
            )
        if not (isinstance(self.temperature, Real) and self.temperature >= 0):
            raise InputError(f"temperature must be 0 (greedy) or more, not {self.temperature!r}.")
        if not (isinstance(self.top_p, Real) and 0 < self.top_p <= 1):
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p!r}.")
        if self.seed is not None and not isinstance(self.seed, Integral):
            raise InputError(f"seed must be a whole number or None, not {self.seed!r}.")
        self._check_logprobs()

    def _check_logprobs(self) -> None:
        count = self.logprobs
        if count is not None and not (
            type(count) is not bool and isinstance(count, Integral) and 0 <= count <= MAX_LOGPROBS
        ):
            raise InputError(
                f"logprobs must be a whole number from 0 to {MAX_LOGPROBS}, or None, not {count!r}."
            )

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def first_seed(self) -> int:
        """Return the seed, or one from torch's generator if there is none."""
        if self.seed is None:
            return int(torch.randint(2**63 - 1, ()))
        return int(self.seed) % 2**63


def pick(logits: Tensor, temperature: Tensor, top_p: Tensor, draw: Tensor) -> Tensor:
    """Sample the next token of each row, without waiting for the host.

    Args:
        logits: [B, vocabulary]. temperature, top_p: float32 [B], as in `Sampling`.
        draw: float32 [B] in [0, 1), where in the probabilities to take a token.

    Returns:
        int64 [B].
    """
    heat = temperature.clamp(min=_COLDEST)[:, None]
    ordered, tokens = (logits.float() / heat).softmax(-1).sort(dim=-1, descending=True, stable=True)
    upto = ordered.cumsum(-1)
    kept = (upto - ordered < top_p[:, None]).sum(-1, keepdim=True).clamp(min=1)  # the likeliest one always
    target = draw[:, None] * upto.gather(-1, kept - 1)
    place = torch.minimum((upto <= target).sum(-1, keepdim=True), kept - 1)
    drawn = tokens.gather(-1, place)[:, 0]
    return torch.where(temperature == 0, logits.argmax(-1), drawn)


def draws(seed: Tensor, index: Tensor) -> Tensor:
    """Return random numbers in [0, 1), float32 [B], from seed and index (int64 [B]) alone.

    So an answer is the same whatever else is in the batch. They are mixed as in splitmix64.
    """
    mixed = seed + (index + 1) * _GOLDEN
    for shift, factor in _MIXING:
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return _shifted(mixed ^ _shifted(mixed, 31), 40).float() * 2.0**-24


def _shifted(x: Tensor, places: int) -> Tensor:
    """Shift to the right without the sign (logical shift)."""
    return (x >> places) & ((1 << (64 - places)) - 1)


class TextBuilder:
    """Decodes tokens to text piece by piece; incomplete characters wait for their last token.

    Each piece is decoded after the previous piece alone, so the cost of a token does not grow.

    starts: of each token in the text so far, where the characters that it belongs to begin.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # tokens of the last piece
        self._held: list[int] = []
        self.text = ""
        self.starts: list[int] = []

    def push(self, token: int) -> str:
        """Add a token; returns the text that it completes, often empty."""
        self._held.append(token)
        piece = self._held_text()
        return "" if piece.endswith(_INCOMPLETE) else self._show(piece)

    def finish(self) -> str:
        """Return text that still waited for a token."""
        return self._show(self._held_text())

    def _held_text(self) -> str:
        return self._decode(self._shown + self._held)[len(self._decode(self._shown)) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _show(self, piece: str) -> str:
        self.starts += [len(self.text)] * len(self._held)
        self._shown, self._held = self._held, []
        self.text += piece
        return piece


def stop_ids(model: PreTrainedModel) -> set[int]:
    """Return the tokens that end an answer, from the generation config and the model's config."""
    found: set[int] = set()
    for ids in (model.generation_config.eos_token_id, model.config.eos_token_id):
        found |= {ids} if isinstance(ids, int) else set(ids or ())
    return found
