"""A stream that is watched frame by frame and can answer questions at any moment.

The stream is one vision span: a vision-start token, then the tokens of frame after frame, each at the time at
which it was seen. A question closes the span on a copy of the state; the stream itself does not change.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Integral
from typing import Any, Self

from infinitevl.engine.answers import Answer
from infinitevl.engine.arrivals import Arrival, Mode, microseconds_of
from infinitevl.engine.base import Session, checked_engine
from infinitevl.engine.engine import Engine
from infinitevl.engine.reading import TurnReader
from infinitevl.engine.rules import WatchEvent, WatchRule
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.watching import Due, Watch
from infinitevl.errors import InputError, StateError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import MICROSECONDS
from infinitevl.processing.prompt.encoding import turn_ids
from infinitevl.processing.prompt.template import DEFAULT_SYSTEM
from infinitevl.processing.sources.frames import Frame, Source

# Largest time, in seconds x tokens per second: differences of such times fit into int64 microseconds.
_LARGEST_TIME = 1e12
_GREEDY = Sampling()
Frames = Sequence[Any] | Iterator[Any] | Source
_PIECE = 32  # frames of a source that are read together


@dataclass(frozen=True)
class StreamStats:
    """Counts and sizes of a stream.

    frames: observed, a waiting one included. dropped: by live sources. tokens: read so far. seconds: time of
    the newest frame. state_bytes: size of the state, constant.
    """

    frames: int
    dropped: int
    tokens: int
    seconds: float
    state_bytes: int


@dataclass(frozen=True)
class Turn:
    """How one question is asked, where it differs from how its session was opened.

    keep: question and answer become part of the stream. system: text of the system turn, or None.
    needs_frame: refuse a question before the first frame; else it may open a conversation.
    """

    keep: bool
    system: str | None
    needs_frame: bool = True


class StreamSession(Session):
    """One user's stream.

    Args:
        model, processor: as `infinitevl.load` returns them.
        mode: "image" makes every frame a picture, as published; "video" lets two frames share a temporal
            patch, which halves the tokens; the first of two waits for its partner.
        frame_size: height and width in pixels (or one number for both) to which frames are resized;
            default: the processor's.
        keep_turns: questions and answers become part of the stream.
        system: text of the system turn of a question; None for no such turn.
        max_length: capacity of full-attention layers in tokens; needed only where there are any (a teacher).
            A stream of such a model ends there.
        quantization: as for `Engine`.

    `StreamSession.on(engine)` makes sessions that share an engine; this constructor makes one of its own.

    Raises:
        InputError: an unknown mode or quantization, or a frame size that is not a multiple of a merged
            token's side.
        StateError: full-attention layers without a usable `max_length`.
    """

    kind = "stream"
    _settings = ("mode", "frame_size", "keep_turns", "system")

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
        engine = Engine(
            model,
            processor,
            mode=mode,
            frame_size=frame_size,
            max_length=max_length,
            quantization=quantization,
        )
        self._start(engine, keep_turns, system, is_alone=True)

    @classmethod
    def on(
        cls, engine: Engine, *, keep_turns: bool = False, system: str | None = DEFAULT_SYSTEM
    ) -> "StreamSession":
        """Open a stream in a slot of `engine`; close it at its end, or use it as a context manager.

        Raises:
            StateError: all slots are taken.
        """
        session = cls.__new__(cls)
        session._start(checked_engine(engine), keep_turns, system, is_alone=False)
        return session

    def _start(self, engine: Engine, keep_turns: bool, system: str | None, is_alone: bool) -> None:
        self.keep_turns, self.system = keep_turns, system
        self.watches: list[Watch] = []
        self._enter(engine, is_alone)
        self.mode, self.frame_size = engine.mode, engine.frame_size

    def observe(self, frame: Any, at: float | None = None) -> None:
        """Add a frame to the stream, then ask the rules that are due (see `watch`).

        On a GPU this returns before the frame is read, unless a rule is asked; later calls wait for it. After
        an error or an interrupt (Ctrl-C) the stream is as it was before, or as after the frame if a rule was
        being asked.

        Args:
            frame: a `Frame`, as `open_source` yields them, with its time and number of dropped frames; or a
                PIL picture, path, uint8 array [H, W, 3] or tensor [3, H, W].
            at: seconds as any kind of number, not before the newest frame; None means one second after it.
                A `Frame` has a time of its own.

        Raises:
            InputError: not a picture, two times, or a time that goes backwards or is no number of seconds.
            StateError: the frame does not fit into full-attention layers.
        """
        self.engine.observe([(self, frame, at)])

    def observe_all(self, frames: Frames, at: Sequence[float | None] | None = None) -> None:
        """Add several frames that are there already, of a file say: the same as one by one, but faster.

        After an error or an interrupt the stream is as it was before the first of them. In a stream with
        rules (`watch`) they are added one by one, and those before an error stay. A source of `open_source`,
        or another iterator, is read to its end in pieces, and those before an error stay.

        Args:
            frames: a list of what `observe` takes, in time order; or a source, without `at`.
            at: their times, as for `observe`; one for each frame.

        Raises:
            InputError: as for `observe`; also another number of times than of frames.
            StateError: the frames do not fit into full-attention layers.
        """
        if isinstance(frames, Source | Iterator) and at is None:
            source = iter(frames)
            while piece := list(islice(source, _PIECE)):
                self.observe_all(piece)
            return
        if isinstance(frames, str | bytes) or not isinstance(frames, Sequence):
            kind = type(frames).__name__
            raise InputError(f"observe_all takes a list of frames, or a source, not {kind}.")
        times: list[float | None] = [None] * len(frames) if at is None else list(at)
        if len(times) != len(frames):
            raise InputError(f"{len(frames)} frames came with {len(times)} times; give one each or none.")
        if self.watches:  # a rule is asked after the very frame at which it is due
            for frame, time in zip(frames, times, strict=True):
                self.observe(frame, time)
        else:
            self.engine.observe_all(self, list(zip(frames, times, strict=True)))

    def expect(self, frame: Any, at: float | None = None) -> Arrival:
        """Check a frame's time and where it belongs, for `Engine.observe`; errors as in `observe`."""
        return self.expect_all([(frame, at)])[0]

    def expect_all(self, frames: Sequence[tuple[Any, float | None]]) -> list[Arrival]:
        """The same for several frames with their times, one after the other."""
        self._check_free()
        arrivals, facts = [], self.slot.facts
        newest = facts.last_time if facts.num_frames else None
        for frame, at in frames:
            picture, num_dropped = frame, 0
            if isinstance(frame, Frame):
                if at is not None:
                    raise InputError(f"a Frame has its own time ({frame.time} s): leave at={at!r} out.")
                picture, at, num_dropped = frame.image, frame.time, frame.dropped
            newest = self._checked_time(at, newest)
            arrivals.append(Arrival(self.slot, picture, newest, num_dropped))
        return arrivals

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

        In video mode a frame that waits for its partner counts as both frames of its patch. The stream still
        waits for the partner; with `keep_turns` the patch ends there, like the span.

        Args:
            question: plain text; names of special tokens in it stay plain text.
            max_new_tokens, temperature, top_p, seed: see `Sampling`.
            on_text: receives the text as it grows.

        Returns:
            The answer. The stream does not change; with `keep_turns` a finished turn becomes part of it, but
            not one that an error or interrupt cuts short.

        Raises:
            InputError: an empty question, one before the first frame, or a bad sampling value.
            StateError: the turn does not fit into full-attention layers, or no slot is free.
        """
        answer = self.begin(question, Sampling(max_new_tokens, temperature, top_p, seed), on_text)
        return self.finish(answer)

    def begin(
        self,
        question: str,
        sampling: Sampling = _GREEDY,
        on_text: Callable[[str], None] | None = None,
        turn: Turn | None = None,
    ) -> Answer:
        """Start to answer a question; `finish` waits for the answer. Several answers are generated together.

        Arguments and errors as in `ask`. turn: how this one is asked; None: as the session was opened.
        """
        turn = self._checked_turn(turn)
        ids = self._turn_ids(question, turn)
        return self._begin(lambda slot: self.engine.read_turn(slot, ids), sampling, on_text, turn.keep)

    def turn_reader(self, question: str, piece: int, turn: Turn | None = None) -> TurnReader:
        """Fork the stream, to read a question into the fork by `piece` tokens a step; then `start`.

        Where the turn is kept no frame may be observed from here until the answer is finished.

        Raises:
            InputError, StateError: as `begin`.
        """
        ids = self._turn_ids(question, self._checked_turn(turn))
        with self.engine.lock:
            return TurnReader(self.engine, self._fork_for_turn(), ids, piece)

    def _checked_turn(self, turn: Turn | None) -> Turn:
        if not isinstance(turn, Turn | None):
            raise InputError(f"turn is {turn!r}; give a Turn, as in Turn(keep=False, system=None).")
        return turn or Turn(self.keep_turns, self.system)

    def _turn_ids(self, question: str, turn: Turn) -> list[int]:
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"the question is empty or no text: {question!r}. Ask something in words.")
        if turn.needs_frame and not self.slot.facts.num_frames:
            raise InputError("nothing was seen yet: observe a frame before the first question.")
        return turn_ids(self.processor.tokenizer, question, turn.system)

    def watch(
        self,
        question: str,
        *,
        every: float,
        on_event: Callable[[WatchEvent], Any],
        expect: str = "yes",
        confirm: int = 1,
        release: int = 1,
        cooldown: float = 0.0,
    ) -> Watch:
        """Ask a question every so many seconds of the stream, and tell when its answer turns to yes.

        `observe` asks it on a fork after the frame at which it is due, also in a stream that keeps its turns:
        the stream and its other answers stay as they would be without rules. Rules are neither saved nor
        forked with the stream. While no slot is free, a rule waits for a later frame.

        Args:
            question, every, expect, confirm, release, cooldown: see `WatchRule`.
            on_event: gets each `WatchEvent`; what it raises comes out of `observe`.

        Returns:
            The watch, whose `stop()` ends it.

        Raises:
            InputError: as `WatchRule`; or `on_event` is no function.
        """
        watch = Watch(self, WatchRule(question, every, expect, confirm, release, cooldown), on_event)
        self.watches = [*self.watches, watch]
        return watch

    def due(self, frame: Any) -> list[Due]:
        """The rules to be asked after a frame that was just observed, for `Engine.observe`."""
        if not self.watches:
            return []
        stats = self.stats()
        picture = frame.image if isinstance(frame, Frame) else frame
        turn = Turn(keep=False, system=self.system)
        return [
            Due(watch, turn, picture, stats.seconds, stats.frames)
            for watch in self.watches
            if watch.state.is_due(stats.seconds)
        ]

    def fork(self) -> Self:
        """Make an independent copy of the stream, without its rules.

        Raises:
            StateError: the session shares an engine whose slots are all taken.
        """
        twin = super().fork()
        twin.watches = []
        return twin

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: InfiniteVLForConditionalGeneration, processor: Any
    ) -> "StreamSession":
        """Continue a saved stream on this model's device and in its dtype.

        Raises:
            StateError: not a state of a stream, damaged, or of another model.
        """
        state, settings = cls._saved(path, model)
        session = cls(model, processor, **settings, max_length=state.max_length)
        session._fill(state)
        return session

    @classmethod
    def load_on(cls, path: str | os.PathLike[str], engine: Engine) -> "StreamSession":
        """Continue a saved stream in a slot of `engine`, to be closed when it ends.

        Raises:
            StateError: as for `load`; also a stream of another mode or frame size, or no free slot.
        """
        state, settings = cls._saved(path, engine.model)
        given, own = [settings["mode"], settings["frame_size"]], [engine.mode, list(engine.frame_size)]
        if given != own:
            raise StateError(
                f"{path} is a stream of mode and frame size {given}, this engine's are {own}. Build an "
                "engine with these, or load it alone."
            )
        session = cls.on(engine, keep_turns=settings["keep_turns"], system=settings["system"])
        session._fill(state)
        return session

    def stats(self) -> StreamStats:
        """Return counts and sizes of the stream so far, without waiting for the device."""
        slot, facts = self.slot, self.slot.facts
        return StreamStats(
            frames=facts.num_frames,
            dropped=facts.num_dropped,
            tokens=facts.num_tokens,
            seconds=facts.last_time / MICROSECONDS,
            state_bytes=slot.state.num_bytes,
        )

    @property
    def dropped(self) -> int:
        """Frames that live sources dropped: the sum over all `Frame`s, or what was set here."""
        return self.slot.facts.num_dropped

    @dropped.setter
    def dropped(self, count: int) -> None:
        if not isinstance(count, Integral) or not 0 <= count < 2**63:
            raise InputError(f"dropped is {count!r}; give a whole number of frames, at least 0.")
        with self.engine.lock:
            self.slot.facts = replace(self.slot.facts, num_dropped=int(count))

    def _checked_time(self, at: float | None, newest: int | None) -> int:
        """Return the time of a new frame in microseconds; InputError for a time that cannot be.

        newest: time of the frame before; None where there is none.
        """
        if at is None:
            return 0 if newest is None else newest + MICROSECONDS
        time = microseconds_of(at, _LARGEST_TIME / self.model.config.vision_config.tokens_per_second)
        if newest is not None and time < newest:
            raise InputError(
                f"time goes backwards: the newest frame was at {newest / MICROSECONDS:g} s, this one is at "
                f"{at} s. Frames must come in time order; a new session may begin at any time."
            )
        return time
