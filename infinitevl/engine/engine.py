"""Runs many streams and chats on one model: each has a slot of one pool; frames and tokens are batched.

The state of a stream has a fixed size, so N slots are allocated once. On one GPU every step is captured as a
CUDA graph when it is first needed, and replayed from then on; elsewhere the same steps are plain calls.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from infinitevl.config import FULL
from infinitevl.engine.answers import AnswerRows
from infinitevl.engine.arrivals import Arrival, Mode, Patch, Waiting, patches_of, pieces
from infinitevl.engine.device import on_device
from infinitevl.engine.graph_runner import GraphRunner
from infinitevl.engine.preprocess import Preprocessor, checked_size
from infinitevl.engine.runner import EagerRunner, Runner
from infinitevl.engine.sampling import stop_ids
from infinitevl.engine.scheduler import Scheduler
from infinitevl.engine.slots import Facts, Parked, Slot, SlotPool
from infinitevl.engine.steps import Steps
from infinitevl.engine.watching import Due, ask
from infinitevl.errors import InputError
from infinitevl.model.fused import fuse_, quantization_of
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.weights import check_values


class Observer(Protocol):
    """What an engine needs of a stream (see `StreamSession.expect`)."""

    engine: "Engine"

    def expect(self, frame: Any, at: float | None = None) -> Arrival: ...
    def expect_all(self, frames: Sequence[tuple[Any, float | None]]) -> list[Arrival]: ...
    def due(self, frame: Any) -> list[Due]: ...


class Engine:
    """A model with slots for streams and chats.

    Args:
        model, processor: as `infinitevl.load` returns them, or the model in peft's wrapping. On a GPU the
            model's weights are laid out for speed, in place.
        num_slots: how many streams, chats and growing answers there can be at the same time.
        mode, frame_size: of every stream of this engine (see `StreamSession`).
        max_length: capacity of full-attention layers in tokens, where there are any.
        enforce_eager: run every step as plain calls instead of CUDA graphs, with equal results. Graphs are
            used where all weights are on one GPU and no layer has full attention.
        quantization: quantize the weights of the decoder's products to "int8", "int4" or "fp8", in place,
            which cannot be undone (`infinitevl.load` does it while loading). None leaves them as they are.

    Raises:
        InputError: a bad mode, number, frame size or quantization.
        StateError: full-attention layers without a usable `max_length`.
        CheckpointError: weights without values (a model on the meta device).
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
        if not hasattr(model, "allocate_state") or not hasattr(processor, "frame_size"):
            raise InputError(
                f"an engine runs a model with its processor, as infinitevl.load returns them, not "
                f"{type(model).__name__} with {type(processor).__name__}."
            )
        check_values(model)
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
            num_rows, max_length=max_length, frame_size=self.frame_size if mode == "video" else (0, 0)
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

    def observe(self, frames: Sequence[tuple[Observer, Any] | tuple[Observer, Any, float | None]]) -> None:
        """Add a frame to each of several streams, in one step: (session, frame) or (session, frame, at) each.

        Then all rules that are due are asked, in common steps. Arguments and errors as in
        `StreamSession.observe`; after an error or an interrupt no stream has changed, unless a rule was being
        asked.

        Raises:
            InputError: also where a session belongs to another engine, or comes twice.
        """
        if not _are_arrivals(frames):
            raise InputError(
                "engine.observe takes (session, frame) or (session, frame, at) of a stream each."
            )
        sessions = [frame[0] for frame in frames]
        if any(session.engine is not self for session in sessions) or len(set(sessions)) < len(sessions):
            raise InputError("frames that are observed together need one engine, and a session of it each.")
        with self.lock:  # no other thread may change these streams meanwhile
            if frames:
                self._observe([session.expect(*frame) for session, *frame in frames])
            due = [found for session, frame, *_ in frames for found in session.due(frame)]
        ask(due)

    @on_device
    def observe_all(self, session: Observer, frames: Sequence[tuple[Any, float | None]]) -> None:
        """Add several frames to one stream, a few in each step (see `StreamSession.observe_all`)."""
        with self.lock:
            arrivals = session.expect_all(frames)
            if arrivals:
                pictures = self.runner.prepare([arrival.picture for arrival in arrivals])
                self._add_run(*self._patches(arrivals, pictures))

    def _observe(self, arrivals: Sequence[Arrival]) -> None:
        """Read frames of several slots, in one step."""
        pictures = self.runner.prepare([arrival.picture for arrival in arrivals])
        parts = [
            self._patches([arrival], [picture]) for arrival, picture in zip(arrivals, pictures, strict=True)
        ]
        self._add(
            [patch for patches, _ in parts for patch in patches], [w for _, held in parts for w in held]
        )

    def _patches(
        self, arrivals: Sequence[Arrival], pictures: Sequence[Tensor]
    ) -> tuple[list[Patch], list[Waiting]]:
        """Complete patches of frames of one slot, which has room for them, and a frame that waits."""
        with self.runner.vision_lane():
            patches, waiting = patches_of(arrivals, pictures, self.mode, self.steps.num_tokens)
        if patches:
            arrivals[0].slot.state.check_room(patches[-1].num_new)
        return patches, waiting

    def _add(self, patches: Sequence[Patch], waiting: Sequence[Waiting] = ()) -> None:
        """Read complete patches; store frames that wait for their partners."""
        encoded = self.runner.encode([patch.clip for patch in patches]) if patches else None
        opening = [patch for patch in patches if not patch.slot.facts.is_open]
        parts: list[Patch | Waiting] = [*patches, *waiting]

        def change() -> None:
            for patch in opening:
                self._open(patch.slot, patch.time)
            if patches:
                slots, _, times, facts = zip(*patches, strict=True)
                self.runner.add_frames(slots, encoded, [[time] for time in times], facts)
            if waiting:
                self.runner.hold(*zip(*waiting, strict=True))
            for part in parts:
                part.slot.facts = part.facts

        is_one_step = self.runner.is_atomic and not opening and not (patches and waiting)
        self._change([part.slot for part in parts], change, is_one_step)

    def _add_run(self, patches: Sequence[Patch], waiting: Sequence[Waiting]) -> None:
        """Read complete patches of one slot, a few in each step; store a frame that waits for its partner."""
        parts: list[Patch | Waiting] = [*patches, *waiting]
        slot = parts[0].slot

        def change() -> None:
            if patches and not slot.facts.is_open:
                self._open(slot, patches[0].time)
            for piece in pieces(len(patches)):
                _, clips, times, facts = zip(*patches[piece], strict=True)
                self.runner.add_frames([slot], self.runner.encode(clips), [times], facts[-1:])
            if waiting:
                self.runner.hold(*zip(*waiting, strict=True))
            slot.facts = parts[-1].facts

        self._change([slot], change, is_one_step=False)

    def _open(self, slot: Slot, time: int) -> None:
        """Open a vision span, whose first frame is at `time`."""
        with self.runner.main_lane():
            self.runner.read(slot, [self.model.config.vision_start_token_id])
            self.runner.open_span(slot, time)

    def _change(self, slots: Sequence[Slot], change: Callable[[], None], is_one_step: bool) -> None:
        """Change slots atomically: after an error or an interrupt each is as before or as after the change.

        is_one_step: the change cannot be interrupted half-way; otherwise the rows are copied beforehand.
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
            for slot in slots:  # the device is right
                slot.facts = replace(Facts.of(slot.state), num_dropped=slot.facts.num_dropped)
            raise

    # ------ text

    @on_device
    def read_turn(self, slot: Slot, turn_ids: list[int]) -> Tensor:
        """Close the span of a slot and read a turn, in one chunk if possible: last hidden state [1, C]."""
        with self.lock:
            facts = slot.facts
            if facts.has_waiting:  # it becomes both frames of its patch
                with self.runner.vision_lane():
                    clip = slot.state.span.waiting[0].expand(2, -1, -1, -1).clone()
                num_tokens = self.steps.num_tokens + (not facts.is_open)
                slot.state.check_room(num_tokens)
                self._add([Patch(slot, clip, facts.last_time, facts.with_patch(num_tokens))])
            if not slot.facts.is_open:
                return self.read(slot, turn_ids)
            hidden = self.read(slot, [self.model.config.vision_end_token_id, *turn_ids])
            with self.runner.main_lane():
                slot.state.span.is_open.fill_(False)
            slot.facts = replace(slot.facts, is_open=False)
            return hidden

    @on_device
    def read(self, slot: Slot, token_ids: list[int]) -> Tensor:
        """Read text at the end of a slot; return the last hidden state [1, C].

        Raises:
            StateError: it does not fit into full-attention layers.
        """
        with self.lock, self.runner.main_lane():
            slot.state.check_room(len(token_ids))
            hidden = self.runner.read(slot, token_ids)
            slot.facts = slot.facts.with_text(len(token_ids))
            return hidden

    @on_device
    def read_prompt(self, slot: Slot, inputs: Mapping[str, Tensor]) -> Tensor:
        """Read what `processor.turn_inputs` returns; return the last hidden state [1, C].

        Raises:
            StateError: it does not fit into full-attention layers.
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
        """Generate a few more tokens of every growing answer, in one batch."""
        self.scheduler.step()

    # ------ slots

    @on_device
    def take(self) -> Slot:
        """Take an empty slot; StateError if all are taken."""
        with self.lock, self.runner.main_lane():
            return self.pool.take()

    @on_device
    def fork(self, slot: Slot) -> Slot:
        """Copy a slot into another one; StateError if all are taken."""
        with self.lock, self.runner.main_lane():
            return self.pool.fork(slot)

    @on_device
    def replace_(self, slot: Slot, source: Slot) -> None:
        """Overwrite `slot` with the contents of `source`."""

        def change() -> None:
            with self.runner.main_lane():
                self.pool.state.copy_row_(slot.index, source.index)
            slot.facts = source.facts

        with self.lock:
            self._change([slot], change, is_one_step=len(self.pool.state.buffers) == 1)

    def release(self, slot: Slot) -> None:
        """Free a slot, and end an answer that still grows in it. May be called twice."""
        with self.lock:
            self.scheduler.end_in(slot)
            self.pool.release(slot)

    @on_device
    def park(self, slot: Slot) -> Parked:
        """Copy a slot to host memory; the slot stays taken."""
        with self.lock, self.runner.main_lane():
            return self.pool.park(slot)

    @on_device
    def unpark(self, parked: Parked) -> Slot:
        """Take a slot and fill it with what was parked; StateError if all are taken."""
        with self.lock, self.runner.main_lane():
            return self.pool.unpark(parked)

    def twin(self) -> "Engine":
        """Make an empty engine with the same settings on the same model."""
        return Engine(self.model, self.processor, **self._settings)

    def settle(self) -> None:
        """Wait until the device is idle; afterwards states can be read directly."""
        self.runner.settle()


def _are_arrivals(frames: Any) -> bool:
    """Whether they are (session, frame) or (session, frame, at), each for something that expects frames."""
    return isinstance(frames, Sequence) and all(
        isinstance(frame, tuple | list) and len(frame) in (2, 3) and hasattr(frame[0], "expect")
        for frame in frames
    )


def _can_capture(model: InfiniteVLForConditionalGeneration) -> bool:
    """Whether steps can be CUDA graphs: all weights on one GPU, no adapters, no full attention."""
    if _has_adapters(model):
        return False
    devices = {parameter.device for parameter in model.parameters()}
    return FULL not in model.config.text_config.layer_types and [d.type for d in devices] == ["cuda"]


def unwrapped(model: Any) -> InfiniteVLForConditionalGeneration:
    """Return the model inside of a peft model; its layers hold the adapters.

    Raises:
        InputError: no model of ours, or the adapter lies outside of the layers.
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
    """Whether peft replaced layers by its own, which fused weights cannot include."""
    return any(hasattr(layer, "base_layer") for layer in model.modules())


def _checked_count(num_slots: Any) -> int:
    if not (isinstance(num_slots, Integral) and int(num_slots) >= 1):
        raise InputError(f"num_slots is {num_slots!r}; an engine needs a whole number, at least 1.")
    return int(num_slots)
