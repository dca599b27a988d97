"""Growing answers: `Answer`, what the host has read of one; `AnswerRows`, the state of all on the device."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infinitevl.engine.logprobs import LogprobRows, TokenLogprob, logprobs_of
from infinitevl.engine.sampling import Sampling, TextBuilder, draws
from infinitevl.engine.sampling import pick as pick_tokens
from infinitevl.engine.slots import Slot

# The last tokens of each answer that are kept for the host, which polls every few steps.
NUM_RECENT = 32


class Pick(NamedTuple):
    """How a step picks tokens, for all of its rows.

    is_greedy: none of them draws. with_logprobs: some of them need the log-probabilities.
    """

    is_greedy: bool
    with_logprobs: bool

    @classmethod
    def of(cls, samplings: Iterable[Sampling]) -> "Pick":
        """The least that does for all of these."""
        settings = [(sampling.is_greedy, sampling.logprobs is not None) for sampling in samplings]
        return cls(all(is_greedy for is_greedy, _ in settings), any(needs for _, needs in settings))


@dataclass(eq=False)
class Answer:
    """An answer that grows in a slot of its own; dropped when it is not referenced any more.

    tokens: read back by the host so far. is_over: complete, and the slot has read all tokens. error: what
    ended it early; raised only to the caller who waits for this answer. pieces: of its text, not yet passed
    to `on_text`. logprobs: of the tokens, where the sampling asks for them.
    """

    slot: Slot
    sampling: Sampling
    builder: TextBuilder
    on_text: Callable[[str], None]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    is_over: bool = False
    error: Exception | None = None
    pieces: deque[str] = field(default_factory=deque)
    _telling: Any = field(default_factory=threading.Lock)
    _teller: int | None = None  # the thread that passes pieces on

    @property
    def text(self) -> str:
        """The text so far."""
        return self.builder.text

    @property
    def is_known(self) -> bool:
        """Whether all tokens are known, though the slot may not have read the last one yet."""
        return self.is_over or len(self.tokens) >= self.sampling.max_new_tokens

    def note(
        self, is_over: bool, count: int, recent: list[int], logprobs: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Add a report of the device: `count` tokens so far, number i of them at i mod len(recent).

        logprobs: this answer's row of `LogprobRows.report`, where it needs them.
        """
        columns = [index % len(recent) for index in range(len(self.tokens), count)]
        new = [recent[column] for column in columns]
        if logprobs is not None:
            most = self.sampling.logprobs or 0
            kept = [logprobs_of(*each, logprobs, most) for each in zip(new, columns, strict=True)]
            self.logprobs += kept
        self.tokens += new
        self.is_over = self.is_over or is_over
        for token in new:
            self._keep(self.builder.push(token))

    def close(self) -> None:
        """Complete the text with characters that were still incomplete."""
        self._keep(self.builder.finish())

    def _keep(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)

    def tell(self, wait: bool) -> None:
        """Pass new pieces to `on_text`, in order; if another thread is doing so, return, or `wait` for it.

        An `on_text` that asks something itself gets its next piece when it has returned.
        """
        if self._teller == threading.get_ident() or not self._telling.acquire(blocking=wait):
            return
        try:
            self._teller = threading.get_ident()
            while self.pieces:
                self.on_text(self.pieces.popleft())
        finally:
            self._teller = None
            self._telling.release()


class AnswerRows:
    """The answers of N slots on the device: tensors with a row for each, which captured steps change.

    Args:
        num_rows: N. stop_ids: tokens that end an answer. never: tokens that are never picked.
    """

    def __init__(self, num_rows: int, stop_ids: set[int], never: set[int], device: torch.device):
        def numbers(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(num_rows, *shape, dtype=dtype, device=device)

        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=device)
        self.never = torch.tensor(sorted(never), dtype=torch.int64, device=device)
        self.token = numbers(torch.int64)  # picked last, not read yet
        self.num_picked = numbers(torch.int64)
        self.limit = numbers(torch.int64)
        self.done = torch.ones(num_rows, dtype=torch.bool, device=device)
        self.temperature, self.top_p = numbers(torch.float32), numbers(torch.float32)
        self.seed = numbers(torch.int64)
        self.recent = numbers(torch.int64, NUM_RECENT)  # token number i in column i mod NUM_RECENT
        self.logprobs = LogprobRows(
            num_rows, NUM_RECENT, device
        )  # of those; written where a step picks with them

    def start_(self, row: int, sampling: Sampling) -> None:
        """Start an answer in a row."""
        largest = torch.finfo(torch.float32).max
        self.num_picked[row].fill_(0)
        self.done[row].fill_(False)
        self.limit[row].fill_(min(int(sampling.max_new_tokens), torch.iinfo(torch.int64).max))
        self.temperature[row].fill_(min(float(sampling.temperature), largest))
        self.top_p[row].fill_(float(sampling.top_p))
        self.seed[row].fill_(0 if sampling.is_greedy else sampling.first_seed())

    def take_(self, rows: Tensor, logits: Tensor, pick: Pick) -> None:
        """Pick the next token of each row, unless its answer is complete.

        A token that ends an answer is not counted, nor is one beyond the limit.

        Args:
            rows: int64 [B]. logits: [B, vocabulary], changed in place.
        """
        logits = logits.to(self.token.device)
        logprobs = logits.float().log_softmax(-1) if pick.with_logprobs else None
        logits = logits.index_fill_(1, self.never, -torch.inf)
        count = self.num_picked[rows]
        if pick.is_greedy:
            token = logits.argmax(-1)
        else:
            draw = draws(self.seed[rows], count)
            token = pick_tokens(logits, self.temperature[rows], self.top_p[rows], draw)
        stops = (token[:, None] == self.stop_ids).any(1)
        over = self.done[rows] | stops | (count >= self.limit[rows])
        column = (count % NUM_RECENT)[:, None]
        if logprobs is not None:
            self.logprobs.keep_(rows, column[:, 0], logprobs, token)
        kept = self.recent[rows]
        kept = kept.scatter(1, column, torch.where(over[:, None], kept.gather(1, column), token[:, None]))
        self.recent.index_copy_(0, rows, kept)
        self.num_picked.index_copy_(0, rows, count + ~over)
        self.done.index_copy_(0, rows, over)
        self.token.index_copy_(0, rows, token)

    def report(self, rows: Tensor) -> Tensor:
        """Return int64 [B, 2 + NUM_RECENT] for the host: over or not, tokens so far, the last ones."""
        head = torch.stack([self.done[rows].long(), self.num_picked[rows]], dim=1)
        return torch.cat([head, self.recent[rows]], dim=1)
