"""The fields of a configuration: what kinds of values they hold, and how a caller's keywords become some."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from infinitevl.errors import CheckpointError


def check(holds: bool, message: str) -> None:
    """Raise CheckpointError with the message unless it holds."""
    if not holds:
        raise CheckpointError(f"this configuration does not make a model: {message}.")


def with_fields(
    found: dict[str, Any], kwargs: dict[str, Any], names: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A caller's fields go into the dictionary, so that they are checked with it and take effect."""
    given = {name: value for name, value in kwargs.items() if name in names}
    if "mrope_section" in given or "rope_theta" in given:
        rope = {**(found.get("rope_parameters") or found.get("rope_scaling") or {})}
        rope = {key: value for key, value in rope.items() if key not in given}
        found = {**found, "rope_parameters": None, "rope_scaling": rope}
    return {**found, **given}, {name: value for name, value in kwargs.items() if name not in given}


def check_fields(config: PreTrainedConfig) -> None:
    """See that every field that has a size, a number or a list of them holds one."""
    for name in set(type(config).__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__):
        value, kind = getattr(config, name), type(config).__dataclass_fields__[name].type
        if kind is int and type(value) is float and value.is_integer():
            setattr(config, name, int(value))  # what another JSON writer made of it
        elif kind in _KINDS:
            may_be_zero = name.endswith("_id") or name in _MAY_BE_ZERO
            check(_KINDS[kind](value, 0 if may_be_zero else 1), f"{name} is {value!r}")
    dtype = config.dtype
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    is_float = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    check(config.dtype is None or is_float, f"dtype is {config.dtype!r}, not one of floating point")


def check_ends(eos_token_id: Any) -> None:
    """See that the end of an answer is a token's number, a list of them, or not named."""
    ids = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    holds = all(token_id is None or type(token_id) is int for token_id in ids)
    check(holds, f"eos_token_id is {eos_token_id!r}, not a number")


def _is_number(value: Any, least: int) -> bool:
    is_finite = type(value) in (int, float) and math.isfinite(value)
    return is_finite and (value > 0 if least else value >= 0)


def _is_list(kind: type) -> Callable[[Any, int], bool]:
    return lambda value, _: isinstance(value, list | tuple) and all(type(each) is kind for each in value)


_MAY_BE_ZERO = ("head_dim", "num_sink_tokens", "attention_dropout", "initializer_range")
_KINDS: dict[Any, Callable[[Any, int], bool]] = {
    int: lambda value, least: type(value) is int and value >= least,
    float: _is_number,
    bool: lambda value, _: type(value) is bool,
    Sequence[int]: _is_list(int),
    Sequence[str]: _is_list(str),
}
