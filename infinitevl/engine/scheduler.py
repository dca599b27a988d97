"""Schedules answers: every step generates one more token of each growing answer, in one batch."""

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from infinitevl.engine.answers import Answer, AnswerRows, Pick
from infinitevl.engine.device import on_device
from infinitevl.engine.runner import Runner
from infinitevl.engine.sampling import Sampling, TextBuilder
from infinitevl.engine.slots import Slot
from infinitevl.errors import InputError, StateError


class _Poll(NamedTuple):
    """A report of the device that the host has not read yet."""

    answers: list[weakref.ref[Answer]]
    result: Callable[[], list[list[int]]]
    logprobs: Callable[[], list[tuple[Tensor, Tensor] | None]]  # of each answer, None where it needs none


class Scheduler:
    """Runs the growing answers of one engine. An answer that is not referenced any more is dropped.

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
            hidden: [1, C], the last hidden state of the question. on_text: receives the text as it grows.
        """
        if on_text is not None and not callable(on_text):
            raise InputError(f"on_text is {on_text!r}; give a function of one piece of text.")
        answer = Answer(slot, sampling, TextBuilder(self.tokenizer), on_text or (lambda piece: None))
        with self.lock, self.runner.main_lane():
            self.rows.start_(slot.index, sampling)
            self.runner.first(slot, hidden, Pick.of([sampling]))
            self._report([answer])
            self._running[answer] = None
        return answer

    @on_device
    def step(self) -> None:
        """Generate a few more tokens of every growing answer, and pass new text to `on_text`."""
        with self.lock:
            earlier = self._polls
            if not self.runner.polls_late:  # a finished answer must not read more tokens
                self._poll(earlier)
            self._grow()
            if self.runner.polls_late:  # the device generates meanwhile
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
        pick = Pick.of(answer.sampling for answer in growing)
        try:
            with self.runner.main_lane():
                for _ in range(self.runner.tokens_per_poll):
                    self.runner.token(slots, pick)
                self._report(growing)
        except BaseException as error:  # some layers have read a token, others have not
            for answer in growing:
                self._fail(answer, _cut_short(error))
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
        logprobs = self._report_logprobs(answers)
        self._polls = [*self._polls, _Poll([weakref.ref(answer) for answer in answers], result, logprobs)]

    def _report_logprobs(self, answers: Sequence[Answer]) -> Callable[[], list[tuple[Tensor, Tensor] | None]]:
        needs = [answer.sampling.logprobs is not None for answer in answers]
        if not any(needs):
            return lambda: [None] * len(needs)
        slots = [answer.slot for answer, need in zip(answers, needs, strict=True) if need]
        result = self.runner.report_logprobs(slots)

        def rows() -> list[tuple[Tensor, Tensor] | None]:
            found = iter(result())
            return [next(found) if need else None for need in needs]

        return rows

    def _poll(self, polls: list[_Poll]) -> None:
        """Read reports of the device, and remove them."""
        for poll in polls:
            reports = zip(poll.answers, poll.result(), poll.logprobs(), strict=True)
            for reference, (is_over, count, *recent), logprobs in reports:
                answer = reference()
                if answer is not None and answer in self._running:
                    self._note(answer, bool(is_over), count, recent, logprobs)
            self._polls = [other for other in self._polls if other is not poll]

    def _note(self, answer: Answer, *report: Any) -> None:
        try:
            answer.note(*report)
        except BaseException as error:  # its text may lack a token, and another thread may wait for it
            self._fail(answer, _cut_short(error))
            raise

    def _tell(self, answer: Answer, wait: bool = False) -> None:
        """Pass text to `on_text`, outside the lock: a slow or failing listener does not stop others."""
        try:
            answer.tell(wait)
        except Exception as error:
            with self.lock:
                self._fail(answer, error)
        except BaseException as error:  # an interrupt of this thread, which may speak for another one
            with self.lock:
                self._fail(answer, _cut_short(error))
            raise

    def _fail(self, answer: Answer, error: Exception) -> None:
        answer.error = error
        self.end(answer)

    def end(self, answer: Answer) -> None:
        """Stop generating an answer; its slot stays taken. May be called twice."""
        with self.lock:
            self._running.pop(answer, None)

    def end_in(self, slot: Slot) -> None:
        """Stop generating the answer in a slot, if there is one."""
        for answer in [answer for answer in self._running if answer.slot is slot]:
            self.end(answer)

    def finish(self, answer: Answer, to_the_end: bool) -> str:
        """Generate until an answer is complete, together with all others; return its text.

        Args:
            to_the_end: wait until the slot has read all tokens too, not only until they are known.

        Raises:
            InputError: it was ended meanwhile.
            Exception: what its `on_text` raised.
            StateError: the answer does not fit into full-attention layers, or a step was cut short.
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
        """Whether an answer is complete; completes its text then."""
        with self.lock:
            if answer.error is not None:
                raise answer.error
            if answer.is_over or (answer.is_known and not to_the_end):
                answer.close()
                return True
            if answer not in self._running:
                raise InputError(f"this answer was ended before it was over; it said {answer.text!r}.")
            return False


def _cut_short(error: BaseException) -> StateError:
    return StateError(f"a step of this answer was cut short ({error!r}). Ask again.")
