"""Frames that are about to be read: arrivals, the temporal patches that they complete, and runs of these."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from infinitevl.engine.slots import Facts, Slot
from infinitevl.errors import InputError
from infinitevl.model.positions import to_microseconds

Mode = Literal["image", "video"]
RUN_LENGTH = 8  # patches of one stream that a step reads at most


class Arrival(NamedTuple):
    """A frame that a stream is about to observe; time in microseconds, num_dropped frames lost before it."""

    slot: Slot
    picture: Any
    time: int
    num_dropped: int


class Patch(NamedTuple):
    """A complete temporal patch. time: of its first frame. facts: of the slot after the patch."""

    slot: Slot
    clip: Tensor
    time: int
    facts: Facts

    @property
    def num_new(self) -> int:
        """Tokens that the slot has not read yet, up to the end of this patch."""
        return self.facts.num_tokens - self.slot.facts.num_tokens


class Waiting(NamedTuple):
    """The first frame of a patch whose second frame has not come. facts: of the slot after this frame."""

    slot: Slot
    picture: Tensor
    facts: Facts


def patches_of(
    arrivals: Sequence[Arrival], pictures: Sequence[Tensor], mode: Mode, num_tokens: int
) -> tuple[list[Patch], list[Waiting]]:
    """Complete patches of frames of one slot, in order, and the last frame if it waits for a partner.

    Args:
        pictures: of the frames, uint8 [3, H, W]. num_tokens: of a patch.
    """
    slot, facts, patches = arrivals[0].slot, arrivals[0].slot.facts, []
    first = slot.state.span.waiting[0].clone() if facts.has_waiting else None
    for (_, _, time, num_dropped), picture in zip(arrivals, pictures, strict=True):
        after = facts.with_frame(time, num_dropped)
        if mode == "video" and first is None:
            first, facts = picture, replace(after, has_waiting=True)
            continue
        clip = picture[None] if first is None else torch.stack([first, picture])
        begin = time if first is None else facts.last_time  # a patch has the time of its first frame
        facts, first = after.with_patch(num_tokens + (not facts.is_open)), None
        patches.append(Patch(slot, clip, begin, facts))
    return patches, [] if first is None else [Waiting(slot, first, facts)]


def pieces(count: int) -> Iterator[slice]:
    """Cut `count` patches into pieces of at most `RUN_LENGTH`; their sizes are powers of two, few of them."""
    start = 0
    while start < count:
        size = min(RUN_LENGTH, 1 << ((count - start).bit_length() - 1))
        yield slice(start, start + size)
        start += size


def microseconds_of(at: Any, largest: float) -> int:
    """Convert seconds, any kind of number, to whole microseconds.

    Raises:
        InputError: no number, or one beyond `largest` on either side of zero.
    """
    try:
        if isinstance(at, str | bytes | bytearray):
            raise TypeError("text is no number")
        seconds = float(at)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"the time of a frame is {at!r}; give seconds as a number.") from error
    if not abs(seconds) <= largest:
        raise InputError(f"the time of a frame is {at!r}; give seconds, at most {largest:g} from zero.")
    return to_microseconds(seconds)
