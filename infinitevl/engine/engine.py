"""Many streams and chats on one model: each in a slot of one pool, frames and tokens in common steps.

The state of a stream is constant, so room for N streams is allocated once. On a GPU every step is captured
the first time it is needed and replayed from then on; anywhere else the same steps run as they are.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from infinitevl.config import FULL
from infinitevl.engine.answers import AnswerRows
from infinitevl.engine.device import on_device
from infinitevl.engine.graph_runner import GraphRunner
from infinitevl.engine.preprocess import Preprocessor, checked_size
from infinitevl.engine.runner import EagerRunner, Runner
from infinitevl.engine.sampling import stop_ids
from infinitevl.engine.scheduler import Scheduler
from infinitevl.engine.slots import Facts, Parked, Slot, SlotPool
from infinitevl.engine.steps import Steps
from infinitevl.errors import InputError
from infinitevl.model.fused import fuse_, quantization_of
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration

Mode = Literal["image", "video"]


class Arrival(NamedTuple):
    """A frame that a stream is about to observe: time in microseconds, frames dropped before it."""

    slot: Slot
    picture: Any
    time: int
    num_dropped: int


class _Patch(NamedTuple):
    """A temporal patch of a stream, complete; time of its first frame, facts after it."""

    slot: Slot
    clip: Tensor
    time: int
    facts: Facts


class _Waiting(NamedTuple):
    """The first frame of a patch whose second is still to come; facts after it."""

    slot: Slot
    picture: Tensor
    facts: Facts


class Observer(Protocol):
    """What an engine asks of a stream (see `StreamSession.expect`)."""

    engine: "Engine"

    def expect(self, frame: Any, at: float | None = None) -> Arrival: ...


class Engine:
    """A model with room for streams and chats.

    Args:
        model, processor: as `infinitevl.load` returns them, or the model in peft's wrapping. On a GPU the
            model's weights are laid out for speed, in place.
        num_slots: streams, chats, and answers being generated, that have room at the same time.
        mode, frame_size: of every stream of this engine (see `StreamSession`).
        max_length: tokens that full-attention layers get room for, where there are any.
        enforce_eager: run every step anew instead of replaying CUDA graphs; the results are the same. Graphs
            are used where all weights are on one GPU and the state is constant.
        quantization: hold the decoder's products in "int8", "int4" or "fp8", in place and for good (see
            `infinitevl.load`, which does it while loading); None leaves them as they are.

    Raises:
        InputError: a bad mode, number, frame size or quantization.
        StateError: full-attention layers without a usable `max_length`.
    """

    @on_device
    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        processor: Any,
        *,
        num_slots: int = 2,
        mode: Mode = "image",
        frame_size: int | tuple[int, int] | None = None,
        max_length: int | None = None,
        enforce_eager: bool = False,
        quantization: str | None = None,
    ):
        if mode not in ("image", "video"):
            raise InputError(f"mode is {mode!r}; choose 'image' or 'video'.")
        num_slots = _checked_count(num_slots)
        model = unwrapped(model)
        vision = model.config.vision_config
        self.model, self.processor, self.mode = model, processor, mode
        wanted = processor.frame_size if frame_size is None else frame_size
        self.frame_size = checked_size(wanted, vision.merge_factor)
        has_graphs = _can_capture(model)
        if quantization is not None and _has_adapters(model):
            raise InputError("quantization needs merged adapters: model = peft_model.merge_and_unload().")
        is_laid_out = has_graphs or (quantization or quantization_of(model)) is not None
        kernels = fuse_(model, quantization=quantization) if is_laid_out else None
        num_rows = num_slots + has_graphs  # the scratch row
        state = model.allocate_state(
            num_rows,
            max_length=max_length,
            frame_size=self.frame_size if mode == "video" else (0, 0),
        )
        self._settings: dict[str, Any] = {
            "num_slots": num_slots,
            "mode": mode,
            "frame_size": self.frame_size,
            "max_length": state.max_length,
            "enforce_eager": enforce_eager,
        }
        self.pool = SlotPool(state, num_slots)
        device = state.length.device
        never = {model.config.image_token_id, model.config.video_token_id}
        self.answers = AnswerRows(num_rows, stop_ids(model), never, device)
        self.steps = Steps(model, processor.image_processor, self.frame_size, kernels)
        parts = self.steps, self.pool, self.answers, Preprocessor(self.frame_size, device)
        clip_length = vision.temporal_patch_size if mode == "video" else 1
        self.runner: Runner = (
            GraphRunner(*parts, clip_length, enforce_eager) if has_graphs else EagerRunner(*parts)
        )
        self.lock = threading.RLock()
        self.scheduler = Scheduler(self.runner, self.answers, processor.tokenizer, self.lock)

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "an engine can be neither copied nor pickled. Build one in each process, and move streams by "
            "session.save and load."
        )

    # ------ frames

    @on_device
    def observe(self, frames: Sequence[tuple[Observer, Any] | tuple[Observer, Any, float | None]]) -> None:
        """One frame for each of several streams, in one step: (session, frame) or (session, frame, at) each.

        Arguments and errors as in `StreamSession.observe`; after an error or an interrupt no stream has
        changed.

        Raises:
            InputError: also where a session belongs to another engine, or comes twice.
        """
        if not all(_is_arrival(frame) for frame in frames):
            raise InputError(
                "engine.observe takes (session, frame) or (session, frame, at) of a stream each."
            )
        sessions = [frame[0] for frame in frames]
        if any(session.engine is not self for session in sessions) or len(set(sessions)) < len(sessions):
            raise InputError("frames that are observed together need one engine, and a session of it each.")
        with self.lock:  # until the frames are in, no other thread moves these streams
            if frames:
                self._observe([session.expect(*frame) for session, *frame in frames])

    def _observe(self, arrivals: Sequence[Arrival]) -> None:
        pictures = self.runner.prepare([arrival.picture for arrival in arrivals])
        patches, waiting = [], []
        for (slot, _, time, num_dropped), picture in zip(arrivals, pictures, strict=True):
            after = slot.facts.with_frame(time, num_dropped)
            if self.mode == "image":
                patches.append(self._patch(slot, picture[None], time, after))
            elif slot.facts.has_waiting:  # a pair of frames has the first one's time
                with self.runner.vision_lane():
                    clip = torch.stack([slot.state.span.waiting[0], picture])
                patches.append(self._patch(slot, clip, slot.facts.last_time, after))
            else:
                waiting.append(_Waiting(slot, picture, replace(after, has_waiting=True)))
        self._add(patches, waiting)

    def _patch(self, slot: Slot, clip: Tensor, time: int, after: Facts) -> _Patch:
        num_tokens = self.steps.num_tokens + (not slot.facts.is_open)
        slot.state.check_room(num_tokens)
        return _Patch(slot, clip, time, after.with_patch(num_tokens))

    def _add(self, patches: Sequence[_Patch], waiting: Sequence[_Waiting] = ()) -> None:
        """Read patches, and keep frames that wait for their partners."""
        encoded = self.runner.encode([patch.clip for patch in patches]) if patches else None
        opening = [patch for patch in patches if not patch.slot.facts.is_open]
        parts: list[_Patch | _Waiting] = [*patches, *waiting]

        def change() -> None:
            for patch in opening:
                with self.runner.main_lane():
                    self.runner.read(patch.slot, [self.model.config.vision_start_token_id])
                    self.runner.open_span(patch.slot, patch.time)
            if patches:
                slots, _, times, facts = zip(*patches, strict=True)
                self.runner.add_frames(slots, encoded, times, facts)
            if waiting:
                self.runner.hold(*zip(*waiting, strict=True))
            for part in parts:
                part.slot.facts = part.facts

        is_one_step = self.runner.is_atomic and not opening and not (patches and waiting)
        self._change([part.slot for part in parts], change, is_one_step)

    def _change(self, slots: Sequence[Slot], change: Callable[[], None], is_one_step: bool) -> None:
        """Change streams; after an error or an interrupt each is whole, as it was before or as it is after.

        is_one_step: nothing can come between the parts of the change; else the rows are copied beforehand.
        """
        before: list[list[Tensor]] = []
        if not is_one_step:
            with self.runner.main_lane():
                before = self.pool.rows(slots)
        try:
            change()
        except BaseException:
            self.runner.settle()
            for slot, row in zip(slots, before, strict=False):
                self.pool.restore_(slot, row)
            for slot in slots:  # what the device has counts
                slot.facts = replace(Facts.of(slot.state), num_dropped=slot.facts.num_dropped)
            raise

    # ------ text

    @on_device
    def read_turn(self, slot: Slot, turn_ids: list[int]) -> Tensor:
        """End the span of a slot and read a turn, in one chunk where it can be: last hidden state [1, C]."""
        with self.lock:
            facts = slot.facts
            if facts.has_waiting:  # it stands for both frames of its patch
                with self.runner.vision_lane():
                    clip = slot.state.span.waiting[0].expand(2, -1, -1, -1).clone()
                self._add([self._patch(slot, clip, facts.last_time, facts)])
            if not slot.facts.is_open:
                return self.read(slot, turn_ids)
            hidden = self.read(slot, [self.model.config.vision_end_token_id, *turn_ids])
            with self.runner.main_lane():
                slot.state.span.is_open.fill_(False)
            slot.facts = replace(slot.facts, is_open=False)
            return hidden

    @on_device
    def read(self, slot: Slot, token_ids: list[int]) -> Tensor:
        """Read text after all that a slot holds: the last hidden state [1, C].

        Raises:
            StateError: full-attention layers have no room for it.
        """
        with self.lock, self.runner.main_lane():
            slot.state.check_room(len(token_ids))
            hidden = self.runner.read(slot, token_ids)
            slot.facts = slot.facts.with_text(len(token_ids))
            return hidden

    @on_device
    def read_prompt(self, slot: Slot, inputs: Mapping[str, Tensor]) -> Tensor:
        """Read text with pictures and videos, what `processor.turn_inputs` returns: last hidden state [1, C].

        Raises:
            StateError: full-attention layers have no room for it.
        """
        if not inputs.keys() & {"pixel_values", "pixel_values_videos"}:
            return self.read(slot, inputs["input_ids"][0].tolist())
        with self.lock, self.runner.main_lane():
            num_tokens = inputs["input_ids"].shape[1]
            slot.state.check_room(num_tokens)
            hidden = self.runner.read_embeds(slot, *self.steps.embed(inputs))
            slot.facts = slot.facts.with_text(num_tokens)
            return hidden

    def step(self) -> None:
        """Let every answer that is being generated grow by a few tokens, all in common steps."""
        self.scheduler.step()

    # ------ slots

    @on_device
    def take(self) -> Slot:
        """An empty slot; StateError where all are taken."""
        with self.lock, self.runner.main_lane():
            return self.pool.take()

    @on_device
    def fork(self, slot: Slot) -> Slot:
        """Another slot that holds the same; StateError where all are taken."""
        with self.lock, self.runner.main_lane():
            return self.pool.fork(slot)

    @on_device
    def replace_(self, slot: Slot, source: Slot) -> None:
        """Let one slot hold what another does."""

        def change() -> None:
            with self.runner.main_lane():
                self.pool.state.copy_row_(slot.index, source.index)
            slot.facts = source.facts

        with self.lock:
            self._change([slot], change, is_one_step=len(self.pool.state.buffers) == 1)

    def release(self, slot: Slot) -> None:
        """Take a slot back, and end an answer that still grows in it. May be called twice."""
        with self.lock:
            self.scheduler.end_in(slot)
            self.pool.release(slot)

    @on_device
    def park(self, slot: Slot) -> Parked:
        """A slot's bytes in host memory; the slot stays taken."""
        with self.lock, self.runner.main_lane():
            return self.pool.park(slot)

    @on_device
    def unpark(self, parked: Parked) -> Slot:
        """A slot that holds what was parked; StateError where all are taken."""
        with self.lock, self.runner.main_lane():
            return self.pool.unpark(parked)

    def twin(self) -> "Engine":
        """An empty engine of the same kind on the same model."""
        return Engine(self.model, self.processor, **self._settings)

    def settle(self) -> None:
        """Return when the device has done all that was asked for: then states can be read directly."""
        self.runner.settle()


def _can_capture(model: InfiniteVLForConditionalGeneration) -> bool:
    """Whether all weights are on one GPU, in layers of our own, and the state is constant."""
    if _has_adapters(model):
        return False
    devices = {parameter.device for parameter in model.parameters()}
    return FULL not in model.config.text_config.layer_types and [d.type for d in devices] == ["cuda"]


def _is_arrival(frame: Any) -> bool:
    """Whether this is (session, frame) or (session, frame, at) of a stream."""
    return isinstance(frame, tuple | list) and len(frame) in (2, 3) and hasattr(frame[0], "expect")


def unwrapped(model: Any) -> InfiniteVLForConditionalGeneration:
    """The model itself, of one that peft wraps: its layers hold the adapters.

    Raises:
        InputError: no model of ours, or what peft adds lies outside of the layers.
    """
    if not hasattr(model, "get_base_model"):
        if not hasattr(model, "allocate_state"):
            raise InputError(
                f"a {type(model).__name__} is no InfiniteVL model. Give what infinitevl.load returns: "
                "model, processor."
            )
        return model
    if model.active_peft_config.is_prompt_learning:
        raise InputError(
            f"this model has a {model.active_peft_config.peft_type} adapter, which adds tokens to prompts. "
            "Sessions run adapters of weights, such as LoRA."
        )
    return model.get_base_model()


def _has_adapters(model: torch.nn.Module) -> bool:
    """Whether peft put layers of its own in the place of others, which no layout of weights includes."""
    return any(hasattr(layer, "base_layer") for layer in model.modules())


def _checked_count(num_slots: Any) -> int:
    if not (isinstance(num_slots, Integral) and int(num_slots) >= 1):
        raise InputError(f"num_slots is {num_slots!r}; an engine needs a whole number, at least 1.")
    return int(num_slots)
