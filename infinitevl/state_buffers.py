"""How the tensors of a state lie side by side in one buffer a device, each row of a batch in one piece."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infinitevl.errors import StateError

_ALIGNMENT = 256  # bytes; what every kernel's widest access asks for
Device = str | torch.device


@dataclass(frozen=True)
class Shape:
    """One row of a tensor of the state."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: Device

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Place:
    """Where in the buffers a tensor lies."""

    buffer: int
    start: int
    wanted: Shape

    def view(self, buffers: list[Tensor]) -> Tensor:
        buffer = buffers[self.buffer]
        flat = buffer[:, self.start : self.start + self.wanted.nbytes]
        return flat.view(self.wanted.dtype).view(len(buffer), *self.wanted.shape)


def arrange(shapes: Sequence[Shape]) -> tuple[tuple[Place, ...], dict[Device, int]]:
    """A place for each tensor, and the bytes of a row for each device."""
    sizes: dict[Device, int] = {}
    places = []
    for shape in shapes:
        start = sizes.setdefault(shape.device, 0)
        places.append(Place(list(sizes).index(shape.device), start, shape))
        sizes[shape.device] = start + -(-shape.nbytes // _ALIGNMENT) * _ALIGNMENT
    return tuple(places), sizes


def zeros(batch_size: int, num_bytes: int, device: Device) -> Tensor:
    """Room for so many streams of num_bytes each; StateError where the device has not so much memory."""
    try:
        return torch.zeros(batch_size, num_bytes, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # torch has a class of its own for this on a GPU only
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise StateError(
            f"the state of {batch_size:,} streams takes {batch_size * num_bytes / 1e9:,.1f} GB "
            f"({num_bytes / 1e6:.2f} MB each), and {device} has not so much free. Make room for fewer; "
            "`infinitevl doctor` says how many fit."
        ) from error
