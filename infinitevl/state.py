"""All that a stream carries from one token to the next: tensors of constant size, and nothing else.

A sliding-window layer keeps a ring of recent keys and values, a Gated DeltaNet its matrix (the recurrent
state) and the last inputs of its convolution. Fill levels, positions and times are tensors too: a replayed
graph moves on. All of one stream lies side by side in one buffer, so that to fork, park or bring back a
stream is a single copy.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from infinitevl import state_file
from infinitevl.config import FULL, LINEAR, SLIDING, InfiniteVLTextConfig
from infinitevl.errors import StateError
from infinitevl.files import atomic_write
from infinitevl.state_buffers import Device, Place, Shape, arrange, zeros
from infinitevl.state_file import shape_text


@dataclass
class WindowState:
    """The sinks and the recent keys and values of one attention layer.

    Token i lives in slot i while there is room, later in the slots behind the sinks, in turn.
    """

    keys: Tensor  # [B, H_kv, S, D]
    values: Tensor  # [B, H_kv, S, D]


@dataclass
class DeltaState:
    """The matrix of one Gated DeltaNet, at least float32, and the inputs that its convolution still sees."""

    recurrent_state: Tensor  # [B, H, K, V]
    conv_state: Tensor  # [B, W - 1, C]


@dataclass
class SpanState:
    """The vision span of a stream that is still open, and the frame that waits for its partner.

    Times are whole microseconds, so that a time axis neither drifts nor rounds with the length of a stream.
    """

    is_open: Tensor  # bool [B]
    start: Tensor  # int64 [B], the position p of the span's first frame
    start_time: Tensor  # int64 [B], microseconds
    last_time: Tensor  # int64 [B], microseconds of the newest frame, which may be the waiting one
    num_frames: Tensor  # int64 [B], frames seen, waiting one included
    num_dropped: Tensor  # int64 [B], frames that a live source had to drop
    has_waiting: Tensor  # bool [B]
    waiting: Tensor  # uint8 [B, 3, height, width]; height = width = 0 where frames never wait


LayerState = WindowState | DeltaState


@dataclass
class StreamState:
    """The state of B streams or conversations.

    `length` counts the tokens in the rings; `next_position` is 1 + the largest position so far on any axis.
    """

    layers: list[LayerState]
    span: SpanState
    length: Tensor  # int64 [B]
    next_position: Tensor  # int64 [B]
    buffers: list[Tensor]  # uint8 [B, bytes of a row], one a device; every tensor above is a view of one
    places: tuple[Place, ...]  # where, in the order of `tensors`
    num_sinks: int = 0  # first slots of a window that are never overwritten

    @classmethod
    @torch.inference_mode(False)  # what is made in inference mode could be changed nowhere else
    def allocate(
        cls,
        config: InfiniteVLTextConfig,
        batch_size: int = 1,
        *,
        dtype: torch.dtype = torch.float32,
        device: Device | Sequence[Device] = "cpu",
        max_length: int | None = None,
        frame_size: tuple[int, int] = (0, 0),
    ) -> "StreamState":
        """An empty state.

        Args:
            config: the decoder's sizes.
            dtype: of windows and conv_states; recurrent states are float32, or float64 beside float64.
            device: one device, or one for each layer.
            max_length: tokens that full-attention layers have room for; needed only where there are any.
            frame_size: height and width in pixels of a frame that waits for its partner (video mode).

        Raises:
            StateError: full-attention layers without `max_length`, a list of devices of another length, or no
                memory for so many streams.
        """
        devices = _layer_devices(config, device)
        layers = [
            _layer_shapes(config, kind, dtype, where, max_length)
            for kind, where in zip(config.layer_types, devices, strict=True)
        ]
        first = devices[0]
        counts = {name: Shape((), torch.int64, first) for name in _COUNTS}
        flags = {name: Shape((), torch.bool, first) for name in _FLAGS}
        waiting = Shape((3, *frame_size), torch.uint8, first)
        length, next_position = counts.pop("length"), counts.pop("next_position")
        span = SpanState(**counts, **flags, waiting=waiting)  # type: ignore[arg-type]
        num_sinks = config.num_sink_tokens if SLIDING in config.layer_types else 0
        wanted = cls(layers, span, length, next_position, [], (), num_sinks)  # type: ignore[arg-type]
        shapes: list[Any] = list(wanted.tensors().values())
        places, sizes = arrange(shapes)
        buffers = [zeros(batch_size, size, where) for where, size in sizes.items()]
        return wanted._on(buffers, places)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, always in the same order."""
        return dict(self._named_tensors())

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        parts = {f"layers.{i}": layer for i, layer in enumerate(self.layers)} | {"span": self.span}
        for prefix, part in parts.items():
            for field in dataclasses.fields(part):
                yield f"{prefix}.{field.name}", getattr(part, field.name)
        yield "length", self.length
        yield "next_position", self.next_position

    @property
    def batch_size(self) -> int:
        """B, the number of streams."""
        return self.length.shape[0]

    @property
    def max_length(self) -> int | None:
        """Tokens that full-attention layers have room for; None where there are no such layers."""
        rooms = [layer.keys.shape[2] for layer in self.layers if isinstance(layer, FullState)]
        return min(rooms, default=None)

    @property
    def num_bytes(self) -> int:
        """Bytes that all tensors hold; the same at every moment of a stream."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def recurrent_norms(self) -> list[float]:
        """Frobenius norm of each Gated DeltaNet's recurrent state, over the whole batch."""
        return [layer.recurrent_state.norm().item() for layer in self.layers if isinstance(layer, DeltaState)]

    @torch.inference_mode(False)
    def fork(self) -> "StreamState":
        """An independent copy: what happens to one leaves the other as it is."""
        return self._on([buffer.clone() for buffer in self.buffers], self.places)

    @torch.inference_mode(False)
    def select(self, index: Tensor) -> "StreamState":
        """A new state whose row b is row index[b] of this one (int64 [B'])."""
        return self._on([x.index_select(0, index.to(x.device)) for x in self.buffers], self.places)

    @torch.inference_mode(False)
    def row(self, index: int) -> "StreamState":
        """Row `index` alone, as a view: what changes here changes there."""
        return self._on([buffer[index : index + 1] for buffer in self.buffers], self.places)

    @torch.inference_mode(False)
    def of_rows(self, rows: Sequence[Tensor]) -> "StreamState":
        """A state of one stream from a row of each buffer (uint8 [bytes of a row], on any device), copied."""
        return self._on([row[None].clone() for row in rows], self.places)

    def copy_row_(self, to: int, source: int) -> None:
        """Make row `to` what row `source` is; one copy a device."""
        for buffer in self.buffers:
            buffer[to].copy_(buffer[source])

    def reset_row_(self, index: int) -> None:
        """Forget everything of one row."""
        for buffer in self.buffers:
            buffer[index].zero_()

    def copy_(self, other: "StreamState") -> "StreamState":
        """Take over all of `other`, in place; dtypes and devices stay as they are here.

        Raises:
            StateError: `other` has other layers, shapes or sinks; nothing was copied.
        """
        if other.num_sinks != self.num_sinks:
            raise StateError(
                f"its windows keep {other.num_sinks} sink tokens, this model's keep {self.num_sinks}."
            )
        self._take_over_(other.tensors())
        return self

    def _take_over_(self, given: dict[str, Tensor]) -> None:
        mine = self.tensors()
        for name in {**mine, **given}:
            if shape_text(given, name) != shape_text(mine, name):
                raise StateError(
                    f"{name} has {shape_text(given, name)}, this model's state has "
                    f"{shape_text(mine, name)} there."
                )
        for name, tensor in mine.items():
            tensor.copy_(given[name])

    def reset_(self) -> "StreamState":
        """Forget everything, in place."""
        for buffer in self.buffers:
            buffer.zero_()
        return self

    def advance_(self, num_new: int | Tensor, position_ids: Tensor, rows: Tensor | None = None) -> None:
        """Count `num_new` tokens (int or int64 [B]) whose largest positions [3, B, T] end the sequence.

        Both may come from the device of another layer. rows: int64 [B], which rows read them; None for all.
        """
        num_new = _moved(num_new, self.length.device)
        end = position_ids.amax(dim=(0, 2)).to(self.next_position.device) + 1
        if rows is None:
            self.length += num_new
            torch.maximum(self.next_position, end, out=self.next_position)
        else:
            self.length.index_copy_(0, rows, self.length[rows] + num_new)
            self.next_position.index_copy_(0, rows, torch.maximum(self.next_position[rows], end))

    def _on(self, buffers: list[Tensor], places: tuple[Place, ...]) -> "StreamState":
        """The same fields as views of other buffers."""
        views = iter([place.view(buffers) for place in places])
        layers = [_renew_fields(layer, views) for layer in self.layers]
        span = _renew_fields(self.span, views)
        return StreamState(layers, span, next(views), next(views), buffers, places, self.num_sinks)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle, copy and torch.save keep: the buffers, of a row that is a view its own bytes alone."""
        buffers = [b if b.nbytes == b.untyped_storage().nbytes() else b.clone() for b in self.buffers]
        kinds = [type(x) for x in self.layers]
        return {
            "buffers": buffers, "places": self.places, "layer_types": kinds, "num_sinks": self.num_sinks
        }  # fmt: skip

    @torch.inference_mode(False)
    def __setstate__(self, kept: dict[str, Any]) -> None:
        empty = [kind(*[None] * len(dataclasses.fields(kind))) for kind in kept["layer_types"]]
        span = SpanState(*[None] * len(dataclasses.fields(SpanState)))  # type: ignore[arg-type]
        self.layers, self.span, self.num_sinks = empty, span, kept.get("num_sinks", 0)
        buffers = [b.clone() if b.is_inference() else b for b in kept["buffers"]]
        self.__dict__.update(vars(self._on(buffers, kept["places"])))

    def save(self, path: str | os.PathLike[str], fingerprint: str, *, settings: str = "") -> None:
        """Write a safetensors file, complete or not at all.

        Args:
            fingerprint: of the model that this state belongs to (`model.weights.fingerprint`).
            settings: text that comes back from `saved_settings`.

        Raises:
            InfiniteVLError: the file could not be written.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        metadata = {
            "format": "infinitevl-state",
            "fingerprint": fingerprint,
            "settings": settings,
            **state_file.version_fields(self.num_sinks),
        }
        metadata["checksum"] = state_file.checksum(tensors, metadata)
        with atomic_write(path) as part:
            save_file(tensors, part, metadata=metadata)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        config: InfiniteVLTextConfig,
        fingerprint: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: Device | Sequence[Device] = "cpu",
    ) -> "StreamState":
        """Read a state back, exactly; on another dtype, windows and conv_states are rounded to it.

        Raises:
            StateError: not a state, another format version, other sinks, another model, or a damaged file.
        """
        tensors, metadata = state_file.read_file(Path(path))
        num_sinks = config.num_sink_tokens if SLIDING in config.layer_types else 0
        state_file.check_metadata(path, metadata, fingerprint, tensors, dtype, num_sinks)
        full = [i for i, kind in enumerate(config.layer_types) if kind == FULL]
        batch_size, frame_size, room = state_file.stated_sizes(path, tensors, full[0] if full else None)
        sizes: Any = {"batch_size": batch_size, "max_length": room, "frame_size": frame_size}
        smallest = cls.allocate(config, **sizes, dtype=torch.bfloat16, device="meta")
        state_file.check_tensors(path, tensors, smallest.tensors(), room)
        state = cls.allocate(config, **sizes, dtype=dtype, device=device)
        state._take_over_(tensors)
        return state

    def check_room(self, num_new: int | Tensor) -> None:
        """Refuse tokens for which full-attention layers have no room; a no-op where the state is constant.

        Args:
            num_new: tokens that are about to come, for all rows or for each (int64 [B]).

        Raises:
            StateError: the buffer would overflow; says how long it is and what to do.
        """
        room = self.max_length
        if room is None:
            return
        needed = int((self.length + _moved(num_new, self.length.device)).max())
        if needed > room:
            raise StateError(
                f"the full-attention layers have room for {room} tokens, {int(self.length.max())} are "
                f"stored, and the new ones would make it {needed}. Start again with a larger max_length."
            )


@dataclass
class FullState(WindowState):
    """All keys and values of a full-attention layer, up to a length chosen at allocation."""


_COUNTS = ("length", "next_position", "start", "start_time", "last_time", "num_frames", "num_dropped")
_FLAGS = ("is_open", "has_waiting")


def _layer_devices(config: InfiniteVLTextConfig, device: Device | Sequence[Device]) -> list[Device]:
    if isinstance(device, str | torch.device):
        return [device] * config.num_hidden_layers
    if len(device) != config.num_hidden_layers:
        raise StateError(
            f"{len(device)} devices were given for {config.num_hidden_layers} layers; give one or all."
        )
    return list(device)


def _layer_shapes(
    config: InfiniteVLTextConfig, kind: str, dtype: torch.dtype, device: Device, max_length: int | None
) -> Any:
    """The layer's state with shapes where tensors will be."""
    if kind == LINEAR:
        recurrent_state = (config.num_linear_heads, config.linear_head_dim, config.linear_value_dim)
        conv_state = (config.conv_size - 1, config.conv_channels)
        wide = torch.promote_types(dtype, torch.float32)
        shapes: Any = Shape(recurrent_state, wide, device), Shape(conv_state, dtype, device)
        return DeltaState(*shapes)
    slots = max_length if kind == FULL else config.num_window_slots
    if not isinstance(slots, Integral) or slots < 1:
        raise StateError(
            f"max_length is {slots!r}; a model with full-attention layers needs the number of tokens to make "
            "room for."
        )
    shapes = [Shape((config.num_key_value_heads, int(slots), config.head_dim), dtype, device)] * 2
    return FullState(*shapes) if kind == FULL else WindowState(*shapes)


def _moved(count: int | Tensor, device: torch.device) -> int | Tensor:
    return count.to(device) if isinstance(count, Tensor) else count


def _renew_fields(part, tensors: Iterator[Tensor]):
    return type(part)(*(next(tensors) for _ in dataclasses.fields(part)))
