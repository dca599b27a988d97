"""Batches the answers that are being generated: one more token for each of them in every step."""

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from infinitevl.engine.answers import Answer, AnswerRows
from infinitevl.engine.device import on_device
from infinitevl.engine.runner import Runner
from infinitevl.engine.sampling import Sampling, TextBuilder
from infinitevl.engine.slots import Slot
from infinitevl.errors import InputError, StateError


class _Poll(NamedTuple):
    """A report of the device that the host has still to read."""

    answers: list[weakref.ref[Answer]]
    result: Callable[[], list[list[int]]]


class Scheduler:
    """The answers of one engine that are not over.

    An answer that nobody holds any more is given up.

    Args:
        lock: the engine's; steps run one after the other.
    """

    def __init__(self, runner: Runner, rows: AnswerRows, tokenizer: Any, lock: threading.RLock):
        self.runner, self.rows, self.tokenizer, self.lock = runner, rows, tokenizer, lock
        self._running: weakref.WeakKeyDictionary[Answer, None] = weakref.WeakKeyDictionary()  # in order
        self._polls: list[_Poll] = []

    @on_device
    def begin(
        self, slot: Slot, hidden: Tensor, sampling: Sampling, on_text: Callable[[str], None] | None = None
    ) -> Answer:
        """Start an answer to a question that a slot has read.

        Args:
            hidden: [1, C], what reading the question returned. on_text: receives the text as it grows.
        """
        answer = Answer(slot, sampling, TextBuilder(self.tokenizer), on_text or (lambda piece: None))
        with self.lock, self.runner.main_lane():
            self.rows.start_(slot.index, sampling)
            self.runner.first(slot, hidden, sampling.is_greedy)
            self._report([answer])
            self._running[answer] = None
        return answer

    @on_device
    def step(self) -> None:
        """Let every answer grow by a few tokens, all in common steps, and hand on their text."""
        with self.lock:
            earlier = self._polls
            if not self.runner.polls_late:  # an answer that is over must not read on
                self._poll(earlier)
            self._grow()
            if self.runner.polls_late:  # the device works on meanwhile
                self._poll(earlier)
            growing = list(self._running)
        for answer in growing:
            self._tell(answer)

    def _grow(self) -> None:
        growing = [answer for answer in self._running if not answer.is_over]
        growing = [answer for answer in growing if self._has_room(answer)]
        if not growing:
            return
        slots = [answer.slot for answer in growing]
        is_greedy = all(answer.sampling.is_greedy for answer in growing)
        try:
            with self.runner.main_lane():
                for _ in range(self.runner.tokens_per_poll):
                    self.runner.token(slots, is_greedy)
                self._report(growing)
        except BaseException as error:  # some layers have read a token, others have not
            for answer in growing:
                self._fail(answer, StateError(f"a step of this answer was cut short ({error!r}). Ask again."))
            raise

    def _has_room(self, answer: Answer) -> bool:
        try:
            answer.slot.state.check_room(self.runner.tokens_per_poll)
        except StateError as error:
            self._fail(answer, error)
            return False
        return True

    def _report(self, answers: Sequence[Answer]) -> None:
        result = self.runner.report([answer.slot for answer in answers])
        self._polls = [*self._polls, _Poll([weakref.ref(answer) for answer in answers], result)]

    def _poll(self, polls: list[_Poll]) -> None:
        """Read reports; one is forgotten when all of it has been noted."""
        for poll in polls:
            for reference, (is_over, count, *recent) in zip(poll.answers, poll.result(), strict=True):
                answer = reference()
                if answer is not None and answer in self._running:
                    answer.note(bool(is_over), count, recent)
            self._polls = [other for other in self._polls if other is not poll]

    def _tell(self, answer: Answer, wait: bool = False) -> None:
        """Outside the lock: a listener that is slow, or fails, stops nobody else."""
        try:
            answer.tell(wait)
        except Exception as error:
            with self.lock:
                self._fail(answer, error)

    def _fail(self, answer: Answer, error: Exception) -> None:
        answer.error = error
        self.end(answer)

    def end(self, answer: Answer) -> None:
        """Let an answer grow no more; its slot stays taken. May be called twice."""
        with self.lock:
            self._running.pop(answer, None)

    def end_in(self, slot: Slot) -> None:
        """End the answer that grows in a slot, if there is one."""
        for answer in [answer for answer in self._running if answer.slot is slot]:
            self.end(answer)

    def finish(self, answer: Answer, to_the_end: bool) -> str:
        """Let an answer grow until it is over, together with all others: its text.

        Args:
            to_the_end: wait until its slot has read every token of it, not only until they are known.

        Raises:
            InputError: it was ended meanwhile.
            Exception: what its `on_text` raised.
            StateError: full-attention layers have no room for more of it, or a step of it was cut short.
        """
        try:
            while not self._is_finished(answer, to_the_end):
                self.step()
            self._tell(answer, wait=True)
        finally:
            self.end(answer)
        if answer.error is not None:
            raise answer.error
        return answer.text

    def _is_finished(self, answer: Answer, to_the_end: bool) -> bool:
        """Whether an answer is over, all of its text complete then."""
        with self.lock:
            if answer.error is not None:
                raise answer.error
            if answer.is_over or (answer.is_known and not to_the_end):
                answer.close()
                return True
            if answer not in self._running:
                raise InputError(f"this answer was ended before it was over; it said {answer.text!r}.")
            return False
