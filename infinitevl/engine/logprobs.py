"""Log-probabilities of tokens: kept on the device, read by the host; and what tokens are called.

They are those of the model's own distribution: before temperature, top_p, and what is never picked.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

MAX_LOGPROBS = 20  # likeliest tokens that can be had beside the one that was picked
_REMEMBERED = 2**14  # tokens
_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer with its natural log-probability.

    likeliest: (token, logprob) of as many as were asked for, the highest first.
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


class LogprobRows:
    """Log-probabilities of the last tokens of N answers on the device.

    Args:
        num_rows: N. num_recent: tokens of each answer that are kept, number i in column i mod num_recent.
    """

    def __init__(self, num_rows: int, num_recent: int, device: torch.device):
        # of the token that was picked, then of the likeliest ones
        self.values = torch.zeros(num_rows, num_recent, 1 + MAX_LOGPROBS, device=device)
        self.tokens = torch.zeros(num_rows, num_recent, MAX_LOGPROBS, dtype=torch.int64, device=device)

    def keep_(self, rows: Tensor, columns: Tensor, logprobs: Tensor, token: Tensor) -> None:
        """Write those of a token each.

        Args:
            rows, columns, token: int64 [B]. logprobs: float32 [B, vocabulary].
        """
        num_kept = min(MAX_LOGPROBS, logprobs.shape[1])
        values, tokens = logprobs.topk(num_kept)
        values = torch.cat([logprobs.gather(1, token[:, None]), values], dim=1)
        self.values[..., : 1 + num_kept].index_put_((rows, columns), values)
        self.tokens[..., :num_kept].index_put_((rows, columns), tokens)

    def report(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B, num_recent, 1 + MAX_LOGPROBS] and the likeliest tokens [B, num_recent, MAX_LOGPROBS]."""
        return self.values[rows], self.tokens[rows]


def logprobs_of(token: int, column: int, report: tuple[Tensor, Tensor], count: int) -> TokenLogprob:
    """Read one token's from the report of its answer; count: how many of the likeliest tokens."""
    (own, *values), tokens = report[0][column].tolist(), report[1][column].tolist()
    return TokenLogprob(token, own, tuple(zip(tokens[:count], values[:count], strict=True)))


class TokenNames:
    """What the tokens of a tokenizer are, each for itself. Those that were asked for last are remembered."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._added = tokenizer, tokenizer.added_tokens_decoder
        self.named = functools.lru_cache(_REMEMBERED)(self._named)

    def _named(self, token: int) -> tuple[str, list[int]]:
        """`text` and `data` of a token, the latter as numbers."""
        return self.text(token), list(self.data(token))

    def data(self, token: int) -> bytes:
        """The bytes that a token adds to the text of an answer: none for a special token.

        A token may hold a part of a character; the bytes of all tokens together are the text in UTF-8.
        """
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else added.content.encode()
        letters = self._letters(token)
        if all(letter in _BYTES for letter in letters):
            return bytes(_BYTES[letter] for letter in letters)
        return letters.encode()

    def text(self, token: int) -> str:
        r"""A token as text: its name if it is special, and as in "bytes:\xe2\x82" if it is no whole text."""
        data = self.data(token)
        if not data:
            return self._letters(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(rf"\x{byte:02x}" for byte in data)

    def _letters(self, token: int) -> str:
        """As the vocabulary has it; nothing for an id that it does not use."""
        return self._tokenizer.convert_ids_to_tokens(token) or ""
