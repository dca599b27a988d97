"""What streams and chats share: a slot of an engine, answers in forked slots, fork, park, save."""

import json
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self

from torch import Tensor

from infinitevl.engine.answers import Answer
from infinitevl.engine.engine import Engine, unwrapped
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.settings import read_settings
from infinitevl.engine.slots import Facts, Parked, Slot
from infinitevl.errors import InputError, StateError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.weights import fingerprint
from infinitevl.processing.prompt.encoding import end_of_turn_ids
from infinitevl.state import StreamState


@dataclass(frozen=True)
class Snapshot:
    """A session as it was at one moment; `save` may run later, and in another thread."""

    state: StreamState
    mark: str
    settings: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file, complete or not at all; InfiniteVLError if it cannot be written."""
        self.state.save(path, self.mark, settings=self.settings)


class Session:
    """A stream or a chat in a slot; see `StreamSession` and `ChatSession`."""

    kind: ClassVar[str]  # in messages
    _settings: ClassVar[tuple[str, ...]]  # saved beside the state
    system: str | None
    keep_turns: bool

    def _enter(self, engine: Engine, is_alone: bool) -> None:
        if not isinstance(engine, Engine):
            raise InputError(f"a {self.kind} lives on an Engine, not on {type(engine).__name__}.")
        if not isinstance(self.system, str | None):
            raise InputError(f"system is {self.system!r}; give the text of a system turn, or None.")
        if not isinstance(self.keep_turns, bool):
            raise InputError(f"keep_turns is {self.keep_turns!r}; give True or False.")
        self.engine = engine
        self._is_alone = is_alone
        self._slot: Slot | None = engine.take()
        self._parked: Parked | None = None
        # The answer that will become part of the session; weak, so that a dropped answer ends.
        self._kept: Callable[[], Answer | None] = lambda: None
        self._begun: weakref.WeakSet[Answer] = weakref.WeakSet()

    @property
    def model(self) -> InfiniteVLForConditionalGeneration:
        """The engine's model."""
        return self.engine.model

    @property
    def processor(self) -> Any:
        """The engine's processor."""
        return self.engine.processor

    @property
    def slot(self) -> Slot:
        """The session's slot, taken again after `park`.

        Raises:
            StateError: the session was closed, or all slots are taken.
        """
        with self.engine.lock:
            if self._slot is None:
                if self._parked is None:
                    raise StateError(f"this {self.kind} was closed. Open another one, or load a saved one.")
                self._slot, self._parked = self.engine.unpark(self._parked), None
            return self._slot

    @property
    def is_parked(self) -> bool:
        """Whether the state lies in host memory or on disk."""
        return self._parked is not None

    @property
    def parked(self) -> Parked | None:
        """The state while the session has no slot."""
        return self._parked

    @property
    def state(self) -> StreamState:
        """The state of this session; waits for the device."""
        slot = self.slot
        self.engine.settle()
        return slot.state

    def recurrent_norms(self) -> list[float]:
        """Return the Frobenius norm of each Gated DeltaNet's recurrent state; waits for the device."""
        return self.state.recurrent_norms

    def _begin(
        self,
        read: Callable[[Slot], Tensor],
        sampling: Sampling,
        on_text: Callable[[str], None] | None,
        keep: bool,
    ) -> Answer:
        """Fork this session, let `read` read a question into the fork ([1, C]), and start the answer.

        keep: whether the turn becomes part of the session when it is finished.
        """
        if not isinstance(sampling, Sampling):
            raise InputError(f"sampling is {sampling!r}; give a Sampling, as in Sampling(max_new_tokens=64).")
        with self.engine.lock:  # the next reading would overwrite what `read` returns
            slot = self._fork_for_turn()
            try:
                return self.start(slot, read(slot), sampling, on_text, keep)
            except BaseException:
                self.engine.release(slot)
                raise

    def _fork_for_turn(self) -> Slot:
        self._check_free()
        return self.engine.fork(self.slot)

    def start(
        self,
        slot: Slot,
        hidden: Tensor,
        sampling: Sampling,
        on_text: Callable[[str], None] | None,
        keep: bool,
    ) -> Answer:
        """Start the answer to a question that a fork of this session has read.

        Args:
            hidden: [1, C], the last hidden state of the question.
            keep: whether the turn becomes part of the session when it is finished, as it was when it began.
        """
        with self.engine.lock:
            answer = self.engine.scheduler.begin(slot, hidden, sampling, on_text)
            self._begun.add(answer)
            self._kept = weakref.ref(answer) if keep else lambda: None
            return answer

    def finish(self, answer: Answer) -> str:
        """Wait for an answer that `begin` started; return its text. Finish or cancel every answer once.

        Raises:
            InputError: it was finished or cancelled before, or meanwhile; or another session began it.
            Exception: what its `on_text` raised. StateError: see `begin`; also where a step was cut short.
        """
        self._check_own(answer)
        self._check_held(answer)
        is_kept = self._kept() is answer
        try:
            text = self.engine.scheduler.finish(answer, to_the_end=is_kept)
            if is_kept:
                self._keep(answer)
        finally:
            self.cancel(answer)
        return text

    def _keep(self, answer: Answer) -> None:
        """Make an answer part of the session."""
        with self.engine.lock:
            self._check_held(answer)
            answer.slot.facts = answer.slot.facts.with_text(len(answer.tokens))
            self.engine.read(answer.slot, end_of_turn_ids(self.processor.tokenizer))
            self.engine.replace_(self.slot, answer.slot)

    def _check_free(self) -> None:
        """Refuse changes while a kept turn is being answered, which would undo them."""
        kept = self._kept()
        if kept is not None and self.engine.pool.holds(kept.slot):
            raise InputError(
                f"this {self.kind} keeps its turns and one is being answered: finish or cancel it."
            )

    def _check_own(self, answer: Answer) -> None:
        _check_answer(answer)
        if answer not in self._begun:
            raise InputError(
                f"this {self.kind} did not begin {answer!r}: an answer is finished or cancelled by the "
                "session that began it, not by a fork of it."
            )

    def _check_held(self, answer: Answer) -> None:
        if not self.engine.pool.holds(answer.slot):
            raise InputError(f"this answer was finished or cancelled before; it said {answer.text!r}.")

    def cancel(self, answer: Answer) -> None:
        """Drop an answer that `begin` started, and free its slot. May be called twice.

        Raises:
            InputError: another session began it.
        """
        self._check_own(answer)
        self.engine.release(answer.slot)

    def fork(self) -> Self:
        """Make an independent copy of the session.

        Raises:
            StateError: the session shares an engine whose slots are all taken.
        """
        with self.engine.lock:
            slot, twin = self.slot, type(self).__new__(type(self))
            vars(twin).update(vars(self))
            twin._kept, twin._begun = lambda: None, weakref.WeakSet()
            if self._is_alone:
                twin._enter(self.engine.twin(), is_alone=True)
                twin._fill(self.state, slot.facts)
            else:
                twin._slot = self.engine.fork(slot)
        return twin

    def park(self) -> None:
        """Move the state to host memory and free the slot; the next use brings it back, bit for bit."""
        with self.engine.lock:
            slot = self._slot
            if slot is not None:
                self._parked, self._slot = self.engine.park(slot), None
                self.engine.release(slot)

    def close(self) -> None:
        """Free the slot; what was not saved is lost. May be called twice."""
        with self.engine.lock:
            slot, self._slot, self._parked = self._slot, None, None
            if slot is not None:
                self.engine.release(slot)

    def __reduce__(self) -> NoReturn:
        raise InputError(
            f"a {self.kind} can be neither copied nor pickled: fork() makes a copy, save(path) keeps it."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write state and settings to one file, complete or not at all.

        Raises:
            InfiniteVLError: the file could not be written.
        """
        self.snapshot().save(path)

    def snapshot(self) -> Snapshot:
        """A copy of state and settings as they are now; waits for the device. What is parked stays parked."""
        mark = fingerprint(self.model, self.model.config)
        settings = {name: getattr(self, name) for name in self._settings}
        with self.engine.lock:
            parked = self._parked
            if parked is None:
                state, facts = self.state.fork(), self.slot.facts
            else:
                state, facts = self.engine.pool.state.of_rows(parked.rows), parked.facts
            state.span.num_dropped.fill_(facts.num_dropped)
        return Snapshot(state, mark, json.dumps(settings))

    @classmethod
    def _saved(
        cls, path: str | os.PathLike[str], model: InfiniteVLForConditionalGeneration
    ) -> tuple[StreamState, dict[str, Any]]:
        """Read state and settings of a file that `save` wrote.

        Raises:
            StateError: not a state of such a session, damaged, or of another model.
        """
        model = unwrapped(model)
        mark, devices = fingerprint(model, model.config), model.model.layer_devices
        config = model.config.text_config
        state = StreamState.load(path, config, mark, dtype=model.dtype, device=devices)
        return state, read_settings(path, cls.kind, cls._settings)

    def _fill(self, state: StreamState, facts: Facts | None = None) -> None:
        """Overwrite the slot with a state; `facts` None reads them from it."""
        self.state.copy_(state)
        self.slot.facts = Facts.of(state) if facts is None else facts


def checked_engine(engine: Any) -> Engine:
    """An engine, as it was given.

    Raises:
        InputError: it is none.
    """
    if not isinstance(engine, Engine):
        raise InputError(f"a {type(engine).__name__} is no engine. Build one: Engine(model, processor).")
    return engine


def _check_answer(answer: Any) -> None:
    if not isinstance(answer, Answer):
        raise InputError(f"{answer!r} is no answer. Give what begin() returned.")
