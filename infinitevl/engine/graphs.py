"""CUDA graphs of steps, and the two lanes on which they are replayed; no other file knows graphs.

A captured step reads its inputs from fixed tensors and changes nothing but tensors. Warm-up and capture use
inputs that name the scratch row, so no stream is affected.
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
# One capture at a time in a process: no thread may wait for a device or collect garbage meanwhile.
_ONE_CAPTURE = threading.Lock()


class Replay:
    """A captured step: called with new inputs it copies them in and replays.

    `outputs` are the tensors that the step returned; they keep their addresses.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: tuple[Tensor, ...], outputs: Any):
        self.graph, self.inputs, self.outputs = graph, inputs, outputs

    def __call__(self, *values: Tensor) -> Any:
        """Replay on the current lane. Fewer values leave the last inputs as they are."""
        for static, value in zip(self.inputs, values, strict=False):
            static.copy_(value, non_blocking=True)
        self.graph.replay()
        return self.outputs


class Rerun:
    """The same interface without a graph: every call runs the step, for comparison and for debuggers."""

    def __init__(self, step: Callable[..., Any], inputs: tuple[Tensor, ...], outputs: Any):
        self.step, self.inputs, self.outputs = step, inputs, outputs

    def __call__(self, *values: Tensor) -> Any:
        """Run the step on the current lane."""
        for static, value in zip(self.inputs, values, strict=False):
            static.copy_(value, non_blocking=True)
        found = self.step(*self.inputs)
        if self.outputs is not None:
            self.outputs.copy_(found)
        return self.outputs


class Lanes:
    """Two CUDA streams on one GPU: `vision` encodes the next frame while `main` reads the last one.

    All other work runs on `main`, in the order of calls.

    Args:
        replays: whether captured steps are replayed; else they run anew each time, with equal results.
    """

    def __init__(self, device: torch.device, replays: bool = True):
        self.device, self.replays = device, replays
        self.streams = {name: torch.cuda.Stream(device) for name in ("vision", "main")}
        self._pools: dict[str, Any] = {name: torch.cuda.graph_pool_handle() for name in self.streams}

    def on(self, name: str) -> AbstractContextManager[Any]:
        """Context in which torch works on a lane."""
        return torch.cuda.stream(self.streams[name])

    def mark(self, name: str) -> torch.cuda.Event:
        """Record an event in a lane's work that others can wait for."""
        event = torch.cuda.Event()
        event.record(self.streams[name])
        return event

    def wait(self, name: str, event: torch.cuda.Event) -> None:
        """Make a lane wait for `event`."""
        self.streams[name].wait_event(event)

    def follow(self, name: str, caller: torch.cuda.Stream) -> None:
        """Make a lane wait for the present work of the caller's stream."""
        asked = torch.cuda.Event()
        asked.record(caller)
        self.wait(name, asked)

    def bring(self, name: str, tensor: Tensor) -> Tensor:
        """Copy a tensor of the caller on a lane, ordered with the caller's stream.

        The caller may overwrite or free its tensor at once.
        """
        caller = torch.cuda.current_stream(tensor.device)
        self.follow(name, caller)
        with self.on(name):
            copy = tensor.to(self.device, copy=True)
        caller.wait_event(self.mark(name))
        return copy

    def capture(self, name: str, step: Callable[..., Any], *inputs: Tensor) -> Replay | Rerun:
        """Warm up `step` on `inputs`, then capture it.

        Waits for both lanes; the caller may have no work in flight that touches the inputs.
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
    """Capture the work inside, without garbage collection, which could free another engine's graphs."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            yield
    finally:
        if collects:
            gc.enable()
