"""The decorator of everything that touches an engine's tensors."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def on_device(function: Function) -> Function:
    """Run a function without gradients, and outside of `torch.inference_mode()`.

    A tensor made in that mode could not be changed outside of it later, and a state lives longer.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]
