"""Steps captured as CUDA graphs, and the two lanes on which they are replayed; no other file knows graphs.

A captured step reads its inputs from tensors that stay where they are and changes nothing but tensors.
Warm-up and capture work on inputs that name the scratch row, so that no stream ever sees them.
"""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

_WARM_UPS = 2
# In a process: nobody may wait for a device during a capture, and garbage is collected for all threads.
_ONE_CAPTURE = threading.Lock()


class Replay:
    """A captured step: called with new inputs it copies them in and replays.

    `outputs` are the tensors that the step returned; they keep their addresses.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: tuple[Tensor, ...], outputs: Any):
        self.graph, self.inputs, self.outputs = graph, inputs, outputs

    def __call__(self, *values: Tensor) -> Any:
        """Replay on the lane that is current. Fewer values leave the last inputs as they are."""
        for static, value in zip(self.inputs, values, strict=False):
            static.copy_(value, non_blocking=True)
        self.graph.replay()
        return self.outputs


class Rerun:
    """The same face without a graph: every call runs the step, for comparison and for debuggers."""

    def __init__(self, step: Callable[..., Any], inputs: tuple[Tensor, ...], outputs: Any):
        self.step, self.inputs, self.outputs = step, inputs, outputs

    def __call__(self, *values: Tensor) -> Any:
        """Run on the lane that is current."""
        for static, value in zip(self.inputs, values, strict=False):
            static.copy_(value, non_blocking=True)
        found = self.step(*self.inputs)
        if self.outputs is not None:
            self.outputs.copy_(found)
        return self.outputs


class Lanes:
    """Two streams of work on one GPU: `vision` sees the next frame while `main` reads the last one.

    All but vision runs on `main`, in the order in which it is asked for.

    Args:
        replays: whether captured steps are replayed; else they run anew each time, with equal results.
    """

    def __init__(self, device: torch.device, replays: bool = True):
        self.device, self.replays = device, replays
        self.streams = {name: torch.cuda.Stream(device) for name in ("vision", "main")}
        self._pools: dict[str, Any] = {name: torch.cuda.graph_pool_handle() for name in self.streams}

    def on(self, name: str) -> AbstractContextManager[Any]:
        """Within it torch works on this lane."""
        return torch.cuda.stream(self.streams[name])

    def mark(self, name: str) -> torch.cuda.Event:
        """A point in a lane's work that others can wait for."""
        event = torch.cuda.Event()
        event.record(self.streams[name])
        return event

    def wait(self, name: str, event: torch.cuda.Event) -> None:
        """Let a lane go on only after `event`."""
        self.streams[name].wait_event(event)

    def follow(self, name: str, caller: torch.cuda.Stream) -> None:
        """Let a lane go on only after what was asked of the caller's stream until now."""
        asked = torch.cuda.Event()
        asked.record(caller)
        self.wait(name, asked)

    def bring(self, name: str, tensor: Tensor) -> Tensor:
        """A lane's own copy of the caller's tensor, in order with the stream that the caller works on.

        So the caller may write over its tensor, or let go of it, at once.
        """
        caller = torch.cuda.current_stream(tensor.device)
        self.follow(name, caller)
        with self.on(name):
            copy = tensor.to(self.device, copy=True)
        caller.wait_event(self.mark(name))
        return copy

    def capture(self, name: str, step: Callable[..., Any], *inputs: Tensor) -> Replay | Rerun:
        """Run `step` on `inputs` until nothing is set up any more, then capture it.

        Both lanes are empty meanwhile: no work of the caller may be in flight that touches the inputs.
        """
        with _ONE_CAPTURE:
            torch.cuda.synchronize(self.device)
            with self.on(name):
                for _ in range(_WARM_UPS):
                    outputs = step(*inputs)
            torch.cuda.synchronize(self.device)
            if not self.replays:
                return Rerun(step, inputs, outputs)
            del outputs
            torch.cuda.empty_cache()  # what the warm-up took: the capture has blocks of its own
            graph = torch.cuda.CUDAGraph()
            with _capturing(graph, self._pools[name], self.streams[name]):
                outputs = step(*inputs)
            return Replay(graph, inputs, outputs)


@contextlib.contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> Iterator[None]:
    """Capture what is asked within, and collect no garbage: the graphs of an engine that nobody has any more
    must not be freed meanwhile.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            yield
    finally:
        if collects:
            gc.enable()
