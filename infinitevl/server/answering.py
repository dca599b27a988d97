"""The answers of a server: those that wait for a slot, those whose prompt is being read, those that grow."""

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from infinitevl.engine.answers import Answer
from infinitevl.engine.reading import PromptReader
from infinitevl.server.errors import ApiError, busy
from infinitevl.server.jobs import Choice, Job
from infinitevl.server.rule_asking import RuleAsking

if TYPE_CHECKING:
    from torch import Tensor

    from infinitevl.server.streams import Stream
    from infinitevl.server.worker import EngineWorker

logger = logging.getLogger(__name__)
_PIECE_ON_CPU, _PIECE_ON_GPU = 64, 512  # tokens of prompts and questions between two frames
_LEAST_SHARE = 8  # even the shortest piece takes as long as this part of a whole one


class Answering:
    """Part of a worker, and run in its thread; `submit` alone comes from others, under the worker's lock."""

    def __init__(self, worker: "EngineWorker", max_waiting: int) -> None:
        self.worker, self.engine, self.max_waiting = worker, worker.engine, max_waiting
        self.max_slots = worker.engine.pool.num_slots - 2  # a stream, and its copy, always have room
        self.waiting: deque[Job] = deque()
        self.reading: deque[Job] = deque()
        self.growing: list[Job] = []
        is_on_gpu = self.engine.pool.state.length.is_cuda
        self.piece = _PIECE_ON_GPU if is_on_gpu else _PIECE_ON_CPU
        self.rules = RuleAsking(self)

    @property
    def num_slots(self) -> int:
        """Slots that answers have, or will have once their prompt was read."""
        return self.rules.num_slots + sum(len(job.choices) for job in [*self.reading, *self.growing])

    def concerns(self, stream: "Stream") -> bool:
        """Whether an answer about a stream waits, is read or grows."""
        return any(job.stream is stream for job in [*self.waiting, *self.reading, *self.growing])

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        if self.reading or self.growing or self.rules.has_work:
            return True
        return any(self._is_ready(job) for job in self.waiting)

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            ApiError: 429, too many wait.
        """
        if len(self.waiting) >= self.max_waiting:
            raise busy(f"{self.max_waiting} answers wait already; try again soon.")
        self.waiting.append(job)

    def step(self) -> None:
        """Begin what can begin, read a piece of prompts and questions, and let every answer grow."""
        self._forget_cancelled()
        self._begin()
        self.rules.begin()
        self._read()
        self._grow()

    def fail_all(self, error: Exception) -> None:
        """End every job."""
        for job in [*self.waiting, *self.reading, *self.growing]:
            self._fail(job, error)
        self.waiting.clear()
        self.reading.clear()
        self.growing.clear()
        self.rules.drop_all()

    # ------ steps

    def _forget_cancelled(self) -> None:
        gone = ApiError(499, "the client went away.", code="cancelled")
        with self.worker.changed:
            left = [job for job in self.waiting if job.is_cancelled]
            self.waiting = deque(job for job in self.waiting if not job.is_cancelled)
        for job in [*left, *self.reading, *self.growing]:
            if job.is_cancelled:
                self._fail(job, gone)
        self.reading = deque(job for job in self.reading if not job.is_cancelled)

    def _begin(self) -> None:
        while (job := self._next()) is not None:
            try:
                if job.stream is None:
                    self._begin_prompt(job)
                else:
                    self._begin_question(job)
            except Exception as error:
                self._fail(job, error)

    def _next(self) -> Job | None:
        """Take the job that has waited longest and can begin; one for whose slots it is too early stays."""
        with self.worker.changed:
            for job in self.waiting:
                if not self._is_ready(job):
                    continue
                if self.num_slots + self.rules.num_claimed + len(job.choices) > self.max_slots:
                    return None
                self.waiting.remove(job)
                return job
        return None

    def _is_ready(self, job: Job) -> bool:
        """Whether the frames that were sent before a question have been read."""
        stream = job.stream
        if job.is_cancelled or stream is None or stream.is_closed:
            return True
        return not stream.num_kept_answers and (not stream.queue or stream.queue[0].serial > job.after)

    def _begin_prompt(self, job: Job) -> None:
        assert job.inputs is not None
        self.worker.make_room(1)
        slot = self.engine.take()
        job.reader = PromptReader(self.engine, slot, job.inputs, self.piece)
        self.reading.append(job)

    def _begin_question(self, job: Job) -> None:
        stream = job.stream
        assert stream is not None
        self.worker.make_resident(stream, extra=1)
        job.session = stream.session
        job.reader = stream.session.turn_reader(job.question, self.piece, job.turn)
        job.seen = stream.stats.frames, stream.stats.seconds
        job.is_kept = stream.session.keep_turns if job.turn is None else job.turn.keep
        stream.num_kept_answers += job.is_kept
        self.reading.append(job)

    def _read(self) -> None:
        """Read a piece of one job after the other, until it has been a whole piece's work."""
        left = self.piece
        while self.reading and left > 0:
            job = self.reading.popleft()
            assert job.reader is not None
            left -= max(job.reader.piece, self.piece // _LEAST_SHARE)
            self._read_piece(job)

    def _read_piece(self, job: Job) -> None:
        assert job.reader is not None
        try:
            hidden = job.reader.step()
            if hidden is None:
                self.reading.append(job)
            else:
                self._begin_choices(job, hidden)
        except Exception as error:
            self._fail(job, error)

    def _begin_choices(self, job: Job, hidden: "Tensor") -> None:
        """Let every choice grow in a slot of its own."""
        assert job.reader is not None
        self.worker.make_room(len(job.choices) - 1)
        first = job.reader.slot
        slots = [first, *(self.engine.fork(first) for _ in job.choices[1:])]
        start: Callable[..., Answer] = self.engine.scheduler.begin
        if job.session is not None:
            start = partial(job.session.start, keep=job.is_kept)
        for choice, slot in zip(job.choices, slots, strict=True):
            choice.answer = start(slot, hidden, choice.sampling, choice.on_text)
        job.reader = None
        self.growing.append(job)

    def _grow(self) -> None:
        if not self.growing and not self.rules.num_slots:
            return
        try:
            self.engine.step()
        except Exception:  # each answer holds what ended it
            logger.exception("a step of the answers failed")
        for job in list(self.growing):
            self.worker.metrics.answer_tokens.inc(sum(choice.count_tokens() for choice in job.choices))
            for choice in job.choices:
                try:
                    if not choice.is_over:
                        self._end_if_over(job, choice)
                except Exception as error:
                    self._fail(job, error)
                    break
            if job.is_over:
                self._leave(job)
        self.rules.collect()

    # ------ ends

    def _end_if_over(self, job: Job, choice: Choice) -> None:
        answer = choice.answer
        assert answer is not None
        if choice.stop.is_met:
            self.engine.release(answer.slot)
            choice.end("stop")
            return
        if answer.error is None and not answer.is_over and (job.is_kept or not answer.is_known):
            return
        if job.stream is None:
            self.engine.scheduler.finish(answer, to_the_end=False)
            self.engine.release(answer.slot)
        else:
            self._finish_question(job, choice)
        is_full = len(answer.tokens) >= answer.sampling.max_new_tokens
        choice.end("length" if is_full and not choice.stop.is_met else "stop")

    def _finish_question(self, job: Job, choice: Choice) -> None:
        stream = job.stream
        assert stream is not None and job.session is not None and choice.answer is not None
        if job.is_kept:
            self.worker.make_resident(stream)
        job.session.finish(choice.answer)
        if job.is_kept:
            with self.worker.changed:
                stream.changes += 1
                stream.refresh()

    def _leave(self, job: Job) -> None:
        """Forget a job that is complete."""
        self.growing = [other for other in self.growing if other is not job]
        self._let_frames_in(job)
        metrics = self.worker.metrics
        metrics.answers.inc()
        metrics.prompt_tokens.inc(job.num_prompt_tokens)
        if job.first_token is not None:
            metrics.first_token_seconds.observe(job.first_token - job.started)
        metrics.answer_seconds.observe(time.monotonic() - job.started)

    def _fail(self, job: Job, error: Exception) -> None:
        self._release(job)
        self.growing = [other for other in self.growing if other is not job]
        job.fail(error)

    def _release(self, job: Job) -> None:
        """Give back the slots of a job that ends early."""
        if job.reader is not None:
            self.engine.release(job.reader.slot)
            job.reader = None
        self._let_frames_in(job)
        for choice in job.choices:
            if choice.answer is not None:
                self.engine.release(choice.answer.slot)

    def _let_frames_in(self, job: Job) -> None:
        if job.stream is not None:
            with self.worker.changed:
                job.stream.num_kept_answers -= job.is_kept
                job.is_kept = False
                self.worker.changed.notify_all()
