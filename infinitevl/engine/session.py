"""A stream that is watched frame by frame and can be questioned at any moment.

The stream is one vision span: a vision-start token, then the tokens of frame after frame, each at the time at
which it was seen. A question closes the span on a copy of the state, so that the stream goes on as if nobody
had asked (spec: "Streaming").
"""

import copy
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from infinitevl.engine.engine import Answer, Engine, Mode
from infinitevl.engine.pool import Parked, Slot, SpanFacts
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.stream_settings import SETTINGS, stream_settings
from infinitevl.errors import InputError, StateError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import MICROSECONDS, to_microseconds
from infinitevl.model.weights import fingerprint
from infinitevl.processing.prompt.encoding import end_of_turn_ids, turn_ids
from infinitevl.processing.prompt.template import DEFAULT_SYSTEM
from infinitevl.state import StreamState

# Seconds x tokens per second: what lies between two such times is counted safely in int64 microseconds.
_LARGEST_TIME = 1e12
_GREEDY = Sampling()


@dataclass(frozen=True)
class StreamStats:
    """What a stream has taken in, and what it holds.

    frames: taken in, a waiting one included. dropped: by a live source. tokens: in the state's past.
    seconds: time of the newest frame. state_bytes: constant. recurrent_norms: of each Gated DeltaNet.
    """

    frames: int
    dropped: int
    tokens: int
    seconds: float
    state_bytes: int
    recurrent_norms: list[float]


class StreamSession:
    """One user's stream.

    Args:
        model, processor: as `infinitevl.load` returns them.
        mode: "image" makes every frame a picture, as published; "video" lets two frames share a temporal
            patch, which halves the tokens; the first of two waits for its partner.
        frame_size: height and width in pixels (or one number for both) to which frames are resized;
            default: the processor's.
        keep_turns: questions and answers become part of the stream.
        system: text of the system turn of a question; None for no such turn.
        max_length: tokens that full-attention layers get room for; needed only where there are any (a
            teacher), and a stream of such a model ends there.
        quantization: as for `Engine`.

    Many streams on one model: `StreamSession.on(engine)` makes sessions that share steps and memory; one made
    by itself has an engine of its own.

    Raises:
        InputError: an unknown mode or quantization, or a frame size that is not a multiple of a merged
            token's side.
        StateError: full-attention layers without a usable `max_length`.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        processor: Any,
        *,
        mode: Mode = "image",
        frame_size: int | tuple[int, int] | None = None,
        keep_turns: bool = False,
        system: str | None = DEFAULT_SYSTEM,
        max_length: int | None = None,
        quantization: str | None = None,
    ):
        sizes: dict[str, Any] = {"frame_size": frame_size, "max_length": max_length}
        engine = Engine(model, processor, mode=mode, quantization=quantization, **sizes)
        self._enter(engine, keep_turns, system, is_alone=True)

    @classmethod
    def on(
        cls, engine: Engine, *, keep_turns: bool = False, system: str | None = DEFAULT_SYSTEM
    ) -> "StreamSession":
        """A stream in a slot of `engine`, to be closed when it ends (or use it as a context manager).

        Raises:
            StateError: all slots are taken.
        """
        session = cls.__new__(cls)
        session._enter(engine, keep_turns, system, is_alone=False)
        return session

    def _enter(self, engine: Engine, keep_turns: bool, system: str | None, is_alone: bool) -> None:
        self.engine, self.keep_turns, self.system = engine, keep_turns, system
        self.mode, self.frame_size = engine.mode, engine.frame_size
        self._is_alone = is_alone
        self._slot: Slot | None = engine.take()
        self._parked: Parked | None = None
        self._kept: Answer | None = None  # with keep_turns, the answer that will become part of the stream

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
        """The stream's slot, taken again after `park`.

        Raises:
            StateError: the session was closed, or all slots are taken.
        """
        with self.engine.lock:
            if self._slot is None:
                if self._parked is None:
                    raise StateError("this stream was closed. Open another one, or load a saved one.")
                self._slot, self._parked = self.engine.unpark(self._parked), None
            return self._slot

    @property
    def state(self) -> StreamState:
        """The state of this stream, complete at the moment of asking."""
        slot = self.slot
        self.engine.settle()
        return slot.state

    def observe(self, frame: Any, at: float | None = None) -> None:
        """Take in a frame. On a GPU this returns before the frame was read; whatever comes next waits for it.

        What is refused leaves no trace. An interrupt (Ctrl-C) in the midst of it may leave a part of the
        frame in the stream, as no copy of the state is made for a frame: fork first where one may come.

        Args:
            frame: PIL picture, path, uint8 array [H, W, 3] or tensor [3, H, W].
            at: seconds as any kind of number, not before the newest frame; None means one second after it.

        Raises:
            InputError: not a picture, or a time that goes backwards or is no number of seconds.
            StateError: full-attention layers have no room for the frame.
        """
        observe_together([(self, frame, at)])

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Answer a question about what was seen so far.

        In video mode a frame that waits for its partner is seen too, as both frames of its patch. The stream
        still waits for the partner, unless `keep_turns`: then the patch ends there, like the span.

        Args:
            question: plain text; names of special tokens in it stay plain text.
            max_new_tokens, temperature, top_p, seed: see `Sampling`.
            on_text: receives the text as it grows.

        Returns:
            The answer. The stream is left untouched; with `keep_turns` it takes in the whole turn at its end,
            or nothing of a turn that an error or interrupt has cut short.

        Raises:
            InputError: an empty question, one before the first frame, or a bad sampling value.
            StateError: full-attention layers have no room for the turn, or the engine no free slot.
        """
        answer = self.begin(question, Sampling(max_new_tokens, temperature, top_p, seed), on_text)
        return self.finish(answer)

    def begin(
        self, question: str, sampling: Sampling = _GREEDY, on_text: Callable[[str], None] | None = None
    ) -> Answer:
        """Start to answer a question; `finish` waits for the answer, together with others that are under way.

        Arguments and errors as in `ask`.
        """
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"the question is empty or no text: {question!r}. Ask something in words.")
        with self.engine.lock:  # what reading returns stands until somebody else reads
            if not self.slot.facts.num_frames:
                raise InputError("nothing was seen yet: observe a frame before the first question.")
            self._check_free()
            slot = self.engine.fork(self.slot)
            try:
                ids = turn_ids(self.processor.tokenizer, question, self.system)
                hidden = self.engine.read_turn(slot, ids)
                answer = self.engine.begin(slot, hidden, sampling, on_text)
                self._kept = answer if self.keep_turns else None
                return answer
            except BaseException:
                self.engine.release(slot)
                raise

    def finish(self, answer: Answer) -> str:
        """The text of an answer that `begin` started, complete. Every answer is finished or cancelled once.

        Raises:
            InputError: it was finished or cancelled before, or meanwhile.
            Exception: what its `on_text` raised. StateError: see `begin`; also where a step was cut short.
        """
        self._check_held(answer)
        try:
            text = self.engine.finish(answer, to_the_end=self.keep_turns)
            if self.keep_turns:
                self._keep(answer)
        finally:
            self.cancel(answer)
        return text

    def _keep(self, answer: Answer) -> None:
        """Let the stream go on behind an answer."""
        with self.engine.lock:
            self._check_held(answer)
            self.engine.read(answer.slot, end_of_turn_ids(self.processor.tokenizer))
            self.engine.replace_(self.slot, answer.slot)

    def _check_free(self) -> None:
        """Refuse what a turn that is going to be kept would undo when it replaces the stream."""
        if self._kept is not None and self.engine.pool.holds(self._kept.slot):
            raise InputError("this stream keeps its turns and one is being answered: finish or cancel it.")

    def _check_held(self, answer: Answer) -> None:
        if not self.engine.pool.holds(answer.slot):
            raise InputError(f"this answer was finished or cancelled before; it said {answer.text!r}.")

    def cancel(self, answer: Answer) -> None:
        """Give up an answer that `begin` started, and its slot. May be called twice."""
        with self.engine.lock:
            if self.engine.pool.holds(answer.slot):
                self.engine.release(answer.slot)

    def fork(self) -> "StreamSession":
        """An independent session that has seen the same.

        Raises:
            StateError: the session shares an engine whose slots are all taken.
        """
        with self.engine.lock:
            slot, twin = self.slot, copy.copy(self)
            twin._kept = None
            if self._is_alone:
                twin.engine = self.engine.twin()
                twin._slot = twin.engine.take()
                twin._load(self.state)
            else:
                twin._slot = self.engine.fork(slot)
        return twin

    def park(self) -> None:
        """Move the state to host memory and free the slot; the next use brings it back, bit for bit."""
        with self.engine.lock:
            if self._slot is not None:
                self._parked, self._slot = self.engine.park(self._slot), None

    def close(self) -> None:
        """Give the slot back; the stream is gone unless it was saved. May be called twice."""
        with self.engine.lock:
            if self._slot is not None:
                self.engine.release(self._slot)
            self._slot = self._parked = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write state and settings to one file, complete or not at all.

        Raises:
            InfiniteVLError: the file could not be written.
        """
        mark = fingerprint(self.model, self.model.config)
        settings = {name: getattr(self, name) for name in SETTINGS}
        with self.engine.lock:
            self.state.save(path, mark, settings=json.dumps(settings))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: InfiniteVLForConditionalGeneration, processor: Any
    ) -> "StreamSession":
        """Continue a saved stream on this model's device and in its dtype.

        Raises:
            StateError: not a state of a stream, damaged, or of another model.
        """
        config = model.config.text_config
        devices = model.model.layer_devices
        mark = fingerprint(model, model.config)
        state = StreamState.load(path, config, mark, dtype=model.dtype, device=devices)
        session = cls(model, processor, **stream_settings(path), max_length=state.max_length)
        session._load(state)
        return session

    def _load(self, state: StreamState) -> None:
        self.state.copy_(state)
        self.slot.facts = SpanFacts.of(state)

    def stats(self) -> StreamStats:
        """Counts and sizes of the stream so far."""
        state, facts = self.state, self.slot.facts
        return StreamStats(
            frames=facts.num_frames,
            dropped=self.dropped,
            tokens=int(state.length),
            seconds=facts.last_time / MICROSECONDS,
            state_bytes=state.num_bytes,
            recurrent_norms=state.recurrent_norms,
        )

    @property
    def dropped(self) -> int:
        """Frames that a live source had to drop; whoever drives the session counts them here."""
        return int(self.state.span.num_dropped)

    @dropped.setter
    def dropped(self, count: int) -> None:
        with self.engine.lock, self.engine.runner.watching():
            self.slot.state.span.num_dropped.fill_(count)

    def _checked_time(self, at: float | None) -> int:
        """Microseconds of a new frame."""
        facts = self.slot.facts
        newest = facts.last_time if facts.num_frames else None
        if at is None:
            return 0 if newest is None else newest + MICROSECONDS
        time = _microseconds(at, _LARGEST_TIME / self.model.config.vision_config.tokens_per_second)
        if newest is not None and time < newest:
            raise InputError(
                f"time goes backwards: the newest frame was at {newest / MICROSECONDS:g} s, this one is at "
                f"{at} s. Frames must come in time order; a new session may begin at any time."
            )
        return time


def observe_together(frames: Sequence[tuple[StreamSession, Any, float | None]]) -> None:
    """One frame for each of several streams of one engine, taken in together: (session, frame, at) each.

    Arguments and errors as in `StreamSession.observe`; after an error no stream has taken anything in.

    Raises:
        InputError: also where sessions belong to several engines, or one comes twice.
    """
    if not frames:
        return
    engine = frames[0][0].engine
    distinct = {id(session) for session, _, _ in frames}
    if any(session.engine is not engine for session, _, _ in frames) or len(distinct) < len(frames):
        raise InputError("frames that are taken in together need one engine, and a session of it each.")
    with engine.lock:  # until the frames are in, no other thread moves these streams
        for session, _, _ in frames:
            session._check_free()
        slots = [session.slot for session, _, _ in frames]
        times = [session._checked_time(at) for session, _, at in frames]
        engine.watch(slots, [frame for _, frame, _ in frames], times)


def _microseconds(at: Any, largest: float) -> int:
    """Whole microseconds of a time in seconds, whatever kind of number it is."""
    try:
        seconds = float(at)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"the time of a frame is {at!r}; give seconds as a number.") from error
    if not abs(seconds) <= largest:
        raise InputError(f"the time of a frame is {at!r}; give seconds, at most {largest:g} from zero.")
    return to_microseconds(seconds)
