"""Many streams and answers on one model: each in a slot of one pool, frames and tokens in common steps.

The state of a stream is constant, so room for N streams is allocated once. On a GPU every step is captured
the first time it is needed and replayed from then on; anywhere else the same steps run as they are.
"""

import threading
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from infinitevl.config import FULL
from infinitevl.engine.answers import Answer, Answers
from infinitevl.engine.feeding import Feeder, checked_size
from infinitevl.engine.pool import Parked, Pool, Slot
from infinitevl.engine.running import Captured, Eager, Runner
from infinitevl.engine.sampling import Sampling, TextBuilder, stop_ids
from infinitevl.engine.steps import Steps, without_gradients
from infinitevl.errors import InputError, StateError
from infinitevl.model.fused import fuse_, quantization_of
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.weights import check_values

Mode = Literal["image", "video"]


class Engine:
    """A model with room for streams.

    Args:
        model, processor: as `infinitevl.load` returns them. On a GPU the model's weights are laid out for
            speed, in place.
        num_slots: streams, and answers being generated, that have room at the same time.
        mode, frame_size: of every stream of this engine (see `StreamSession`).
        max_length: tokens that full-attention layers get room for, where there are any.
        replay: capture steps and replay them, where all weights are on one GPU and the state is constant;
            False runs the same steps anew each time, with the same results.
        quantization: hold the decoder's products in "int8", "int4" or "fp8", in place and for good (see
            `infinitevl.load`, which does it while loading); None leaves them as they are.

    Raises:
        InputError: a bad mode, number, frame size or quantization.
        StateError: full-attention layers without a usable `max_length`.
        CheckpointError: weights without values (a model on the meta device).
    """

    @without_gradients
    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        processor: Any,
        *,
        num_slots: int = 2,
        mode: Mode = "image",
        frame_size: int | tuple[int, int] | None = None,
        max_length: int | None = None,
        replay: bool = True,
        quantization: str | None = None,
    ):
        if mode not in ("image", "video"):
            raise InputError(f"mode is {mode!r}; choose 'image' or 'video'.")
        num_slots = _checked_count(num_slots)
        check_values(model)
        vision = model.config.vision_config
        self.model, self.processor, self.mode = model, processor, mode
        wanted = processor.frame_size if frame_size is None else frame_size
        self.frame_size = checked_size(wanted, vision.merge_factor)
        is_captured = _can_capture(model)
        is_laid_out = is_captured or (quantization or quantization_of(model)) is not None
        kernels = fuse_(model, quantization=quantization) if is_laid_out else None
        num_rows = num_slots + is_captured  # the scratch row
        state = model.allocate_state(
            num_rows,
            max_length=max_length,
            frame_size=self.frame_size if mode == "video" else (0, 0),
        )
        self.pool = Pool(state, num_slots)
        never = {model.config.image_token_id, model.config.video_token_id}
        device = state.length.device
        answers = Answers(num_rows, stop_ids(model), never, device)
        self.steps = Steps(model, processor.image_processor, self.frame_size, kernels)
        parts = (self.steps, self.pool, answers)
        self.runner: Runner = Eager(*parts)
        if is_captured:
            clip_length = vision.temporal_patch_size if mode == "video" else 1
            self.runner = Captured(*parts, clip_length, replay)
        self.answers = answers
        self.lock = threading.RLock()
        self._settings: dict[str, Any] = {
            "num_slots": num_slots,
            "mode": mode,
            "frame_size": self.frame_size,
            "max_length": state.max_length,
            "replay": replay,
        }
        self._feed = Feeder(self.frame_size, device)
        self._running: list[Answer] = []
        self._looks: list[tuple[list[Answer], Callable[[], list[list[int]]]]] = []

    # ------ frames

    @without_gradients
    def watch(self, slots: Sequence[Slot], frames: Sequence[Any], times: Sequence[int]) -> None:
        """One frame for each of several streams, in one step.

        Args:
            slots: distinct. frames: see `StreamSession.observe`. times: microseconds, checked by the caller.

        Raises:
            InputError: something is not a picture; no stream was changed.
            StateError: full-attention layers have no room for the frames; no stream was changed.
        """
        with self.lock:
            received = [self.runner.receive(frame) for frame in frames]
            with self.runner.watching():
                pictures = [self._feed(frame) for frame in received]
            waiting = [self.mode == "video" and not slot.facts.has_waiting for slot in slots]
            pairs = list(zip(slots, pictures, times, strict=True))
            full = [pair for pair, waits in zip(pairs, waiting, strict=True) if not waits]
            if full:
                self._take_in(
                    [
                        (slot, self._clip(slot, picture), self._patch_time(slot, time))
                        for slot, picture, time in full
                    ]
                )
            with self.runner.watching():
                for (slot, picture, time), waits in zip(pairs, waiting, strict=True):
                    self._note_frame(slot, picture if waits else None, time)

    def _clip(self, slot: Slot, picture: Tensor) -> Tensor:
        """What one temporal patch shows: uint8 [1 or 2, 3, H, W]."""
        if self.mode == "image":
            return picture[None]
        with self.runner.watching():
            return torch.stack([slot.state.span.waiting[0], picture])

    def _patch_time(self, slot: Slot, time: int) -> int:
        """A pair of frames has the first one's time."""
        return slot.facts.last_time if self.mode == "video" else time

    def _take_in(self, parts: list[tuple[Slot, Tensor, int]]) -> None:
        slots, clips, times = zip(*parts, strict=True)
        seen = self.runner.see(clips)
        for slot in slots:  # all of it or none
            slot.state.check_room(self.steps.num_tokens + (not slot.facts.is_open))
        for slot, _, time in parts:
            if not slot.facts.is_open:
                self._open_span(slot, time)
        self.runner.take_in(slots, seen, times)

    def _open_span(self, slot: Slot, time: int) -> None:
        span = slot.state.span
        self.read(slot, [self.model.config.vision_start_token_id])
        with self.runner.working():
            span.start.copy_(slot.state.next_position)
            span.start_time.fill_(time)
            span.is_open.fill_(True)
        slot.know(is_open=True)

    def _note_frame(self, slot: Slot, waiting: Tensor | None, time: int) -> None:
        span = slot.state.span
        if waiting is not None:
            span.waiting.copy_(waiting[None])
        if self.mode == "video":
            span.has_waiting.fill_(waiting is not None)
        span.last_time.fill_(time)
        span.num_frames += 1
        slot.know(has_waiting=waiting is not None, last_time=time, num_frames=slot.facts.num_frames + 1)

    @without_gradients
    def close_span(self, slot: Slot) -> None:
        """End the span, with a frame that still waits in it doubled."""
        with self.lock:
            self._take_in_waiting(slot)
            if slot.facts.is_open:
                self.read(slot, [self.model.config.vision_end_token_id])
                self._note_end(slot)

    def _take_in_waiting(self, slot: Slot) -> None:
        if not slot.facts.has_waiting:
            return
        span = slot.state.span
        with self.runner.watching():
            clip = span.waiting[0].expand(2, -1, -1, -1).clone()
        self._take_in([(slot, clip, slot.facts.last_time)])
        with self.runner.watching():
            span.has_waiting.fill_(False)
        slot.know(has_waiting=False)

    def _note_end(self, slot: Slot) -> None:
        with self.runner.working():
            slot.state.span.is_open.fill_(False)
        slot.know(is_open=False)

    # ------ text

    @without_gradients
    def read_turn(self, slot: Slot, turn_ids: list[int]) -> Tensor:
        """End the span of a slot and read a turn, in one chunk where it can be: last hidden state [1, C]."""
        with self.lock:
            self._take_in_waiting(slot)
            if not slot.facts.is_open:
                return self.read(slot, turn_ids)
            hidden = self.read(slot, [self.model.config.vision_end_token_id, *turn_ids])
            self._note_end(slot)
            return hidden

    @without_gradients
    def read(self, slot: Slot, token_ids: list[int]) -> Tensor:
        """Read text after all that a slot holds: the last hidden state [1, C].

        Raises:
            StateError: full-attention layers have no room for it.
        """
        with self.lock, self.runner.working():
            slot.state.check_room(len(token_ids))
            return self.runner.read(slot, token_ids)

    @without_gradients
    def begin(
        self,
        slot: Slot,
        hidden: Tensor,
        sampling: Sampling,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Start an answer to a question that a slot has read; `step` lets it grow.

        Args:
            hidden: [1, C], what reading the question returned. on_text: receives the text as it grows.
        """
        with self.lock, self.runner.working():
            self.answers.start_(slot.index, sampling)
            self.runner.first(slot, hidden, sampling.is_greedy)
            answer = Answer(
                slot, sampling, TextBuilder(self.processor.tokenizer), on_text or (lambda piece: None)
            )
            self._looks = [*self._looks, ([answer], self.runner.report([slot]))]
            self._running.append(answer)
        return answer

    @without_gradients
    def step(self) -> None:
        """Let every answer that is being generated grow by a few tokens, all in common steps."""
        with self.lock:
            if isinstance(self.runner, Captured):  # the device works on while the host looks
                earlier = self._looks
                self._grow()
                self._look(earlier)
            else:
                while self._looks:  # an answer that is over must not read on
                    self._look(self._looks)
                self._grow()
            told = list(self._running)
        for answer in told:
            self._tell(answer)

    def _grow(self) -> None:
        growing = [answer for answer in self._running if not answer.is_over]
        growing = [answer for answer in growing if self._has_room(answer)]
        if not growing:
            return
        slots = [answer.slot for answer in growing]
        is_greedy = all(answer.sampling.is_greedy for answer in growing)
        try:
            with self.runner.working():
                for _ in range(self.runner.tokens_per_look):
                    self.runner.token(slots, is_greedy)
                self._looks = [*self._looks, (growing, self.runner.report(slots))]
        except BaseException as error:  # some layers have read a token, others have not
            for answer in growing:
                self._fail(answer, StateError(f"a step of this answer was cut short ({error!r}). Ask again."))
            raise

    def _has_room(self, answer: Answer) -> bool:
        try:
            answer.slot.state.check_room(self.runner.tokens_per_look)
        except StateError as error:
            self._fail(answer, error)
            return False
        return True

    def _look(self, looks: list[tuple[list[Answer], Callable[[], list[list[int]]]]]) -> None:
        for look in looks:
            answers, result = look
            for answer, (is_over, count, *recent) in zip(answers, result(), strict=True):
                if answer in self._running:
                    answer.note(bool(is_over), count, recent)
            self._looks = [other for other in self._looks if other is not look]

    def _tell(self, answer: Answer, wait: bool = False) -> None:
        """Outside the lock: a listener who takes his time, or fails, stops nobody else."""
        try:
            answer.tell(wait)
        except Exception as error:
            with self.lock:
                self._fail(answer, error)

    def _fail(self, answer: Answer, error: Exception) -> None:
        answer.error = error
        self.end(answer)

    def end(self, answer: Answer) -> None:
        """Let an answer grow no more; its slot stays taken."""
        with self.lock:
            if answer in self._running:
                self._running.remove(answer)

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

    # ------ slots

    @without_gradients
    def take(self) -> Slot:
        """An empty slot; StateError where all are taken."""
        with self.lock, self.runner.working():
            return self.pool.take()

    @without_gradients
    def fork(self, slot: Slot) -> Slot:
        """Another slot that holds the same; StateError where all are taken."""
        with self.lock, self.runner.working():
            return self.pool.fork(slot)

    @without_gradients
    def replace_(self, slot: Slot, source: Slot) -> None:
        """Let one slot hold what another does."""
        with self.lock, self.runner.working():
            self.pool.replace_(slot, source)

    def release(self, slot: Slot) -> None:
        """Take a slot back, and end an answer that still grows in it."""
        with self.lock:
            self._running = [answer for answer in self._running if answer.slot is not slot]
            self.pool.release(slot)

    @without_gradients
    def park(self, slot: Slot) -> Parked:
        """Bring a slot's bytes to host memory and take it back."""
        with self.lock, self.runner.working():
            return self.pool.park(slot)

    @without_gradients
    def unpark(self, parked: Parked) -> Slot:
        """A slot that holds what was parked; StateError where all are taken."""
        with self.lock, self.runner.working():
            return self.pool.unpark(parked)

    def twin(self) -> "Engine":
        """An empty engine of the same kind on the same model."""
        return Engine(self.model, self.processor, **self._settings)

    def settle(self) -> None:
        """Return when the device has done all that was asked for: then states can be read directly."""
        self.runner.settle()


def _can_capture(model: InfiniteVLForConditionalGeneration) -> bool:
    """Whether all weights are on one GPU and the state is constant."""
    devices = {parameter.device for parameter in model.parameters()}
    return FULL not in model.config.text_config.layer_types and [d.type for d in devices] == ["cuda"]


def _checked_count(num_slots: Any) -> int:
    if not (isinstance(num_slots, Integral) and int(num_slots) >= 1):
        raise InputError(f"num_slots is {num_slots!r}; an engine needs a whole number, at least 1.")
    return int(num_slots)
