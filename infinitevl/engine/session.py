"""A stream that is watched frame by frame and can be questioned at any moment.

The stream is one vision span: a vision-start token, then the tokens of frame after frame, each at the time at
which it was seen. A question closes the span on a copy of the state, so that the stream goes on as if nobody
had asked (spec: "Streaming").
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from infinitevl.engine.reading import answer, read_embeds, read_text
from infinitevl.engine.sampling import Sampling
from infinitevl.errors import InputError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import MICROSECONDS, frame_positions, to_microseconds
from infinitevl.model.weights import fingerprint
from infinitevl.processing.images import clip_patches, resize_frame
from infinitevl.processing.prompt import DEFAULT_SYSTEM, end_of_turn_ids, turn_ids
from infinitevl.state import StreamState, saved_settings

Mode = Literal["image", "video"]


@dataclass(frozen=True)
class StreamStats:
    """What a stream has taken in, and what it holds.

    frames: taken in, a waiting one included. dropped: by a live source. tokens: in the state's past.
    seconds: time of the newest frame. state_bytes: constant. memory_norms: of each Gated DeltaNet.
    """

    frames: int
    dropped: int
    tokens: int
    seconds: float
    state_bytes: int
    memory_norms: list[float]


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

    Raises:
        InputError: an unknown mode or a frame size that is not a multiple of a merged token's side.
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
    ):
        if mode not in ("image", "video"):
            raise InputError(f"mode is {mode!r}; choose 'image' or 'video'.")
        self.model, self.processor = model, processor
        self.mode, self.keep_turns, self.system = mode, keep_turns, system
        self.frame_size = _checked_size(
            frame_size or processor.frame_size, model.config.vision_config.merge_factor
        )
        self.state = model.allocate_state(frame_size=self.frame_size if mode == "video" else (0, 0))

    @torch.no_grad()
    def observe(self, frame: Any, at: float | None = None) -> None:
        """Take in a frame.

        Args:
            frame: PIL picture, path, uint8 array [H, W, 3] or tensor [3, H, W].
            at: seconds, not before the newest frame; None means one second after it.

        Raises:
            InputError: not a picture, or a time that goes backwards; the stream is as it was.
        """
        time = self._checked_time(at)
        pixels = resize_frame(frame, self.frame_size).to(self.state.length.device)
        span = self.state.span
        if self.mode == "image":
            self._take_in(self.state, pixels, pixels, time)
        elif not span.has_waiting:
            span.waiting.copy_(pixels)
            span.waiting_time.fill_(time)
            span.has_waiting.fill_(True)
        else:
            self._take_in_waiting(self.state, pixels)
        span.last_time.fill_(time)
        span.num_frames += 1

    @torch.no_grad()
    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Answer a question about what was seen so far.

        Args:
            question: plain text; names of special tokens in it stay plain text.
            max_new_tokens, temperature, top_p: see `Sampling`. on_text: receives the text as it grows.

        Returns:
            The answer. The stream is left untouched unless `keep_turns`.

        Raises:
            InputError: an empty question, one before the first frame, or a bad sampling value.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p)
        if not question.strip():
            raise InputError("the question is empty; ask something.")
        if not int(self.state.span.num_frames):
            raise InputError("nothing was seen yet: observe a frame before the first question.")
        state = self.state if self.keep_turns else self.state.fork()
        self._close_span(state)
        tokenizer = self.processor.tokenizer
        hidden = read_text(self.model, state, turn_ids(tokenizer, question, self.system))
        text = answer(self.model, tokenizer, state, hidden, sampling, on_text)
        if self.keep_turns:
            read_text(self.model, state, end_of_turn_ids(tokenizer))
        return text

    def fork(self) -> "StreamSession":
        """An independent session that has seen the same."""
        twin = StreamSession(self.model, self.processor, **self._settings())
        twin.state = self.state.fork()
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write state and settings to one file, complete or not at all.

        Raises:
            InfiniteVLError: the file could not be written.
        """
        mark = fingerprint(self.model, self.model.config)
        self.state.save(path, mark, settings=json.dumps(self._settings()))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: InfiniteVLForConditionalGeneration, processor: Any
    ) -> "StreamSession":
        """Continue a saved stream on this model's device and in its dtype.

        Raises:
            StateError: not a state, damaged, or of another model.
        """
        config = model.config.text_config
        devices = model.model.layer_devices
        mark = fingerprint(model, model.config)
        state = StreamState.load(path, config, mark, dtype=model.dtype, device=devices)
        session = cls(model, processor, **json.loads(saved_settings(path)))
        session.state = state
        return session

    def stats(self) -> StreamStats:
        """Counts and sizes of the stream so far."""
        state, span = self.state, self.state.span
        return StreamStats(
            frames=int(span.num_frames),
            dropped=self.dropped,
            tokens=int(state.length),
            seconds=int(span.last_time) / MICROSECONDS,
            state_bytes=state.num_bytes,
            memory_norms=state.memory_norms,
        )

    @property
    def dropped(self) -> int:
        """Frames that a live source had to drop; whoever drives the session counts them here."""
        return int(self.state.span.num_dropped)

    @dropped.setter
    def dropped(self, count: int) -> None:
        self.state.span.num_dropped.fill_(count)

    def _settings(self) -> dict[str, Any]:
        size = list(self.frame_size)
        return {"mode": self.mode, "frame_size": size, "keep_turns": self.keep_turns, "system": self.system}

    def _checked_time(self, at: float | None) -> int:
        """Microseconds of a new frame."""
        span = self.state.span
        newest = int(span.last_time) if int(span.num_frames) else None
        if at is None:
            return 0 if newest is None else newest + MICROSECONDS
        if not math.isfinite(at):
            raise InputError(f"the time of a frame is {at}; give seconds as a finite number.")
        time = to_microseconds(at)
        if newest is not None and time < newest:
            raise InputError(
                f"time goes backwards: the newest frame was at {newest / MICROSECONDS:g} s, this one is at "
                f"{at:g} s. Frames must come in time order; fork() or a new session starts over."
            )
        return time

    def _take_in(self, state: StreamState, first: Tensor, second: Tensor, time: int) -> None:
        """One temporal patch of two pictures [3, H, W] at `time`, opening a span if none is open."""
        if not state.span.is_open:
            self._open_span(state, time)
        vision = self.model.config.vision_config
        look = self.processor.image_processor
        clip = torch.stack([first, second])[None]  # [1, 2, 3, H, W]
        patches = clip_patches(
            clip, vision.patch_size, vision.spatial_merge_size, look.image_mean, look.image_std
        )
        rows, columns = (side // vision.merge_factor for side in self.frame_size)
        grid = (1, rows * vision.spatial_merge_size, columns * vision.spatial_merge_size)
        features = self.model.model.visual(patches.to(self.model.dtype), [grid])
        elapsed = time - state.span.start_time
        positions = frame_positions(state.span.start, elapsed, rows, columns, vision.tokens_per_second)
        read_embeds(self.model, state, features[None], positions)

    def _take_in_waiting(self, state: StreamState, second: Tensor | None) -> None:
        """The waiting frame with its partner, or doubled where there is none yet."""
        span = state.span
        first = span.waiting[0].clone()
        span.has_waiting.fill_(False)
        self._take_in(state, first, first if second is None else second, int(span.waiting_time))

    def _open_span(self, state: StreamState, time: int) -> None:
        read_text(self.model, state, [self.model.config.vision_start_token_id])
        state.span.start.copy_(state.next_position)
        state.span.start_time.fill_(time)
        state.span.is_open.fill_(True)

    def _close_span(self, state: StreamState) -> None:
        """End the span, with a frame that still waits in it doubled."""
        if state.span.has_waiting:
            self._take_in_waiting(state, None)
        if state.span.is_open:
            read_text(self.model, state, [self.model.config.vision_end_token_id])
            state.span.is_open.fill_(False)


def _checked_size(size: int | tuple[int, int] | list[int], side: int) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < side or width < side or height % side or width % side:
        raise InputError(
            f"frame_size is {height} x {width}; height and width must be multiples of {side} pixels, "
            "the side of one token."
        )
    return height, width
