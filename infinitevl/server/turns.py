"""Whose frames are read in the next step, when more streams are ready than have room."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infinitevl.server.streams import Stream

# A turn ends after so many frames. Between two turns a state is copied out of its slot and another one in.
FRAMES_PER_TURN = 4


class Turns:
    """Lets streams take turns: those that were not read for longest come first.

    Of R ready streams, of which S have room in a step, each is read within ceil(R / S) turns, whatever the
    others send. A stream that has more frames goes on until its turn is over, since a change costs copies.
    """

    def __init__(self) -> None:
        self._num_read = 0
        self._newest = 0  # what was read after this many frames was read in the newest step

    def choose(self, ready: "Sequence[Stream]", count: int) -> "list[Stream]":
        """At most `count` of the ready streams, first those whose turn goes on."""
        chosen = sorted(ready, key=lambda stream: (not self._goes_on(stream), stream.last_read))[:count]
        for stream in chosen:
            stream.turn_frames = stream.turn_frames + 1 if self._goes_on(stream) else 1
        self._newest = self._num_read
        for stream in chosen:  # each has a number of its own, so that no two are equal next time
            self._num_read += 1
            stream.last_read = self._num_read
        return chosen

    def _goes_on(self, stream: "Stream") -> bool:
        """Whether it was read in the step before, and its turn is not over."""
        is_next = stream.last_read > self._newest
        return is_next and not stream.session.is_parked and stream.turn_frames < FRAMES_PER_TURN
