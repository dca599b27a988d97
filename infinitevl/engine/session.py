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
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor

from infinitevl.engine.reading import answer, read_embeds, read_text
from infinitevl.engine.sampling import Sampling
from infinitevl.errors import InputError, StateError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import MICROSECONDS, frame_positions, to_microseconds
from infinitevl.model.weights import fingerprint
from infinitevl.processing.images import clip_patches, resize_frame
from infinitevl.processing.prompt import DEFAULT_SYSTEM, end_of_turn_ids, turn_ids
from infinitevl.state import StreamState, saved_settings

Mode = Literal["image", "video"]

_SETTINGS = ("mode", "frame_size", "keep_turns", "system")
# Seconds x tokens per second: what lies between two such times is counted safely in int64 microseconds.
_LARGEST_TIME = 1e12


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
        max_length: tokens that full-attention layers get room for; needed only where there are any (a
            teacher), and a stream of such a model ends there.

    Raises:
        InputError: an unknown mode or a frame size that is not a multiple of a merged token's side.
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
    ):
        if mode not in ("image", "video"):
            raise InputError(f"mode is {mode!r}; choose 'image' or 'video'.")
        self.model, self.processor = model, processor
        self.mode, self.keep_turns, self.system = mode, keep_turns, system
        self.frame_size = _checked_size(
            processor.frame_size if frame_size is None else frame_size,
            model.config.vision_config.merge_factor,
        )
        self.state = model.allocate_state(
            max_length=max_length, frame_size=self.frame_size if mode == "video" else (0, 0)
        )

    @torch.no_grad()
    def observe(self, frame: Any, at: float | None = None) -> None:
        """Take in a frame.

        What is refused leaves no trace. An interrupt (Ctrl-C) in the midst of it may leave a part of the
        frame in the stream, as no copy of the state is made for a frame: fork first where one may come.

        Args:
            frame: PIL picture, path, uint8 array [H, W, 3] or tensor [3, H, W].
            at: seconds as any kind of number, not before the newest frame; None means one second after it.

        Raises:
            InputError: not a picture, or a time that goes backwards or is no number of seconds.
            StateError: full-attention layers have no room for the frame.
        """
        time = self._checked_time(at)
        pixels = resize_frame(frame, self.frame_size).to(self.state.length.device)
        span = self.state.span
        if self.mode == "image":
            self._take_in(self.state, pixels, pixels, time)
        elif not span.has_waiting:
            span.waiting.copy_(pixels)
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

        In video mode a frame that waits for its partner is seen too, as both frames of its patch. The stream
        still waits for the partner, unless `keep_turns`: then the patch ends there, like the span.

        Args:
            question: plain text; names of special tokens in it stay plain text.
            max_new_tokens, temperature, top_p: see `Sampling`. on_text: receives the text as it grows.

        Returns:
            The answer. The stream is left untouched; with `keep_turns` it takes in the whole turn at its end,
            or nothing of a turn that an error or interrupt has cut short.

        Raises:
            InputError: an empty question, one before the first frame, or a bad sampling value.
            StateError: full-attention layers have no room for the turn.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p)
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"the question is empty or no text: {question!r}. Ask something in words.")
        if not int(self.state.span.num_frames):
            raise InputError("nothing was seen yet: observe a frame before the first question.")
        state = self.state.fork()
        self._close_span(state)
        tokenizer = self.processor.tokenizer
        hidden = read_text(self.model, state, turn_ids(tokenizer, question, self.system))
        text = answer(self.model, tokenizer, state, hidden, sampling, on_text)
        if self.keep_turns:
            read_text(self.model, state, end_of_turn_ids(tokenizer))
            self.state.copy_(state)
        return text

    def fork(self) -> "StreamSession":
        """An independent session that has seen the same."""
        twin = copy.copy(self)
        twin.state = self.state.fork()
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write state and settings to one file, complete or not at all.

        Raises:
            InfiniteVLError: the file could not be written.
        """
        mark = fingerprint(self.model, self.model.config)
        settings = {name: getattr(self, name) for name in _SETTINGS}
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
        session = cls(model, processor, **_stream_settings(path), max_length=state.max_length)
        session.state.copy_(state)
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

    def _checked_time(self, at: float | None) -> int:
        """Microseconds of a new frame."""
        span = self.state.span
        newest = int(span.last_time) if int(span.num_frames) else None
        if at is None:
            return 0 if newest is None else newest + MICROSECONDS
        time = _microseconds(at, _LARGEST_TIME / self.model.config.vision_config.tokens_per_second)
        if newest is not None and time < newest:
            raise InputError(
                f"time goes backwards: the newest frame was at {newest / MICROSECONDS:g} s, this one is at "
                f"{at} s. Frames must come in time order; fork() or a new session starts over."
            )
        return time

    def _take_in(self, state: StreamState, first: Tensor, second: Tensor, time: int) -> None:
        """One temporal patch of two pictures [3, H, W] at `time`, opening a span if none is open."""
        features = self._features(first, second)
        is_open = bool(state.span.is_open)
        state.check_room(len(features) + (not is_open))  # all of it or none
        if not is_open:
            self._open_span(state, time)
        elapsed = time - state.span.start_time
        speed = self.model.config.vision_config.tokens_per_second
        positions = frame_positions(state.span.start, elapsed, *self._token_grid, speed)
        read_embeds(self.model, state, features[None], positions)

    def _features(self, first: Tensor, second: Tensor) -> Tensor:
        """What the model sees in two pictures [3, H, W]: [rows * columns, C]."""
        vision = self.model.config.vision_config
        look = self.processor.image_processor
        clip = torch.stack([first, second])[None]  # [1, 2, 3, H, W]
        patches = clip_patches(
            clip, vision.patch_size, vision.spatial_merge_size, look.image_mean, look.image_std
        )
        rows, columns = (side * vision.spatial_merge_size for side in self._token_grid)
        return self.model.model.visual(patches.to(self.model.dtype), [(1, rows, columns)])

    @property
    def _token_grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens."""
        height, width = self.frame_size
        side = self.model.config.vision_config.merge_factor
        return height // side, width // side

    def _take_in_waiting(self, state: StreamState, second: Tensor | None) -> None:
        """The waiting frame with its partner, or doubled where there is none yet."""
        span = state.span
        first = span.waiting[0]
        time = int(span.last_time)  # the partner's own time is not noted yet
        self._take_in(state, first, first if second is None else second, time)
        span.has_waiting.fill_(False)

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


def _microseconds(at: Any, largest: float) -> int:
    """Whole microseconds of a time in seconds, whatever kind of number it is."""
    try:
        seconds = float(at)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"the time of a frame is {at!r}; give seconds as a number.") from error
    if not abs(seconds) <= largest:
        raise InputError(f"the time of a frame is {at!r}; give seconds, at most {largest:g} from zero.")
    return to_microseconds(seconds)


def _checked_size(size: int | Sequence[int], side: int) -> tuple[int, int]:
    """Height and width of frames, both multiples of `side` pixels."""
    sides = size if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(n, Integral) and n >= side and n % side == 0 for n in sides):
        raise InputError(
            f"frame_size is {size!r}; height and width must be multiples of {side} pixels, "
            "the side of one token."
        )
    height, width = sides
    return int(height), int(width)


def _stream_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was saved of a session beside its state."""
    text = saved_settings(path)
    try:
        settings = json.loads(text)
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict) or settings.keys() != set(_SETTINGS):
        raise StateError(
            f"{path} holds a state but not the settings of a stream. Save streams with session.save(path); "
            "StreamState.load reads the state alone."
        )
    return settings
