"""Find the fastest attention in torch for one query over a long cache, by timing."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from infinitevl.bench.clock import measure

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_PACKED = "sdpa_packed_query_heads"


@dataclass(frozen=True)
class Attention:
    """The layout of query heads over their shared keys, and the kernel.

    layout: "sdpa", transformers' own (torch's enable_gqa), or the query heads of a key head as rows of one
        query, as newer transformers do it, so that each key is read once.
    backend: of torch's scaled_dot_product_attention. milliseconds: one layer.
    """

    layout: str
    backend: str
    milliseconds: float

    @property
    def name(self) -> str:
        """The name for a record."""
        return f"{self.layout}/{self.backend}"

    @contextlib.contextmanager
    def chosen(self, model: Any) -> Iterator[None]:
        """Make the model's decoder use it."""
        text = model.model.language_model.config
        before = text._attn_implementation
        text._attn_implementation = self.layout
        try:
            with sdpa_kernel(_BACKENDS[self.backend]):
                yield
        finally:
            text._attn_implementation = before


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend one query [B, H, 1, D] to keys [B, H_kv, S, D]: [B, 1, H, D], called as by transformers."""
    assert attention_mask is None and query.shape[2] == 1, "for one token over a full cache"
    rows = query.unflatten(1, (key.shape[1], -1)).squeeze(3)  # [B, H_kv, H / H_kv, D]
    out = F.scaled_dot_product_attention(rows, key, value, scale=scaling)
    return out.flatten(1, 2).unsqueeze(1), None


def _grouped_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def choose_attention(model: Any, keys: Tensor, values: Tensor) -> Attention:
    """Try every layout and kernel on one layer's cache [1, H_kv, S, D] and take the fastest that runs."""
    AttentionInterface.register(_PACKED, packed_attention)
    heads = model.config.text_config.num_attention_heads
    query = torch.randn(1, heads, 1, keys.shape[-1], dtype=keys.dtype, device=keys.device)
    layouts: dict[str, Callable[[], object]] = {
        "sdpa": lambda: _grouped_attention(query, keys, values),
        _PACKED: lambda: packed_attention(model, query, keys, values, None),
    }
    tried = [
        Attention(layout, backend, taken)
        for layout, call in layouts.items()
        for backend in _BACKENDS
        if (taken := _time(call, backend, keys.device)) is not None
    ]
    return min(tried, key=lambda attention: attention.milliseconds)


def _time(call: Callable[[], object], backend: str, device: torch.device) -> float | None:
    """Milliseconds, or None if this kernel cannot run it."""
    try:
        with torch.no_grad(), sdpa_kernel(_BACKENDS[backend]), _quiet():
            return measure(call, device, repeats=5, warm_up=2).median
    except (RuntimeError, torch.cuda.OutOfMemoryError):
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch, which warns about every kernel that cannot run."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
