"""How everything that touches an engine's tensors runs."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def on_device(function: Function) -> Function:
    """Run without gradients, and outside of `torch.inference_mode()`.

    A tensor that is made in that mode cannot be changed outside of it later, and a state lives on.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]
