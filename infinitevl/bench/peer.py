"""The stock Transformer to compare with: Qwen2.5-VL in transformers, in the shape of the 3B model.

Its weights are random, its attention is torch's, its cache grows with every token. It runs as users run it
(`EagerPeer`), and with its decoding captured over a cache of fixed size (`GraphedPeer`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from infinitevl.bench.peer_attention import choose_attention
from infinitevl.errors import InputError

_SHAPES: dict[str, dict[str, Any]] = {
    "4b": {
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": 2048,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    },
    "tiny": {
        "text_config": {
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "bos_token_id": 499,
            "eos_token_id": 501,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 52,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        "vision_start_token_id": 502,
        "vision_end_token_id": 503,
        "image_token_id": 505,
        "video_token_id": 506,
    },
}


PEER_SIZES = tuple(_SHAPES)


def check_peer(size: str) -> None:
    """Check that there is a stock model of a size.

    Raises:
        InputError: there is none.
    """
    if size not in PEER_SIZES:
        raise InputError(
            f"there is no Transformer to compare {size!r} with; take --size 4b, or leave it out (--no-peer)."
        )


def build_peer(size: str, device: str | torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """Build the stock model with random weights, on the device.

    Raises:
        InputError: no stock model is compared with a model of this size.
    """
    check_peer(size)
    config = Qwen2_5_VLConfig(**_SHAPES[size], tie_word_embeddings=True)
    where = torch.device(device)
    with torch.device(where), torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    return model.eval().requires_grad_(False)


class EagerPeer:
    """The model as users run it: a cache that grows by concatenation, no graph.

    context: tokens whose random keys and values the cache starts with.
    """

    def __init__(self, model: Any, context: int, seed: int = 0):
        self.model, self.context = model, context
        self.cache: Any = DynamicCache(config=model.config.get_text_config(decoder=True))
        _fill(self.cache, model, context, seed)
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)

    def rewind(self) -> None:
        """Drop everything after the context, so that every repeat starts equal."""
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, : self.context], layer.values[:, :, : self.context]

    @torch.no_grad()
    def step(self) -> Tensor:
        """Decode the likeliest token; return its logits [1, 1, vocabulary]."""
        logits = self.read(self._token)
        self._token = logits.argmax(-1)
        return logits

    @torch.no_grad()
    def read(self, ids: Tensor, **pixels: Tensor) -> Tensor:
        """Read tokens [1, T] and their pixels; return the logits of the last one [1, 1, vocabulary]."""
        length = self.cache.get_seq_length()
        out = self.model(
            input_ids=ids,
            position_ids=_positions(length, ids.shape[1], ids.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **pixels,
        )
        return out.logits


class GraphedPeer:
    """The model decoding as fast as it can: one token over a full cache of fixed size, captured.

    The cache has room for the context and one token more, so attention needs no mask and the fastest
    attention of torch can read it. `attention` names the one that was the fastest at this context.

    capture: takes a function and returns one that replays it; None runs it as it is, for a machine without
        graphs.
    """

    def __init__(
        self,
        model: Any,
        context: int,
        capture: Callable[[Callable[[], None]], Callable[[], object]] | None = None,
        seed: int = 0,
    ):
        self.model, self.context = model, context
        self.cache, self._lengths = _static_cache(model, context, seed)
        self.attention = choose_attention(model, self.cache.layers[0].keys, self.cache.layers[0].values)
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        self._position = _positions(context, 1, model.device)
        vocab_size = model.config.text_config.vocab_size
        self.logits = torch.empty(1, 1, vocab_size, dtype=model.dtype, device=model.device)
        self._replay = self._run if capture is None else capture(self._run)
        self.token.zero_()  # capturing has run it

    def step(self) -> Tensor:
        """Decode the token after the context; return logits [1, 1, vocabulary], the same tensor each time.

        The likeliest token is read by the next step, in the same place.
        """
        self._replay()
        return self.logits

    @torch.no_grad()
    def _run(self) -> None:
        self._lengths.fill_(self.context)  # a further token would have no slot
        with self.attention.chosen(self.model):
            out = self.model(
                input_ids=self.token,
                position_ids=self._position,
                attention_mask={"full_attention": None},  # every slot of the cache is in use
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.logits.copy_(out.logits)
        self.token.copy_(self.logits.argmax(-1))


@torch.no_grad()
def prefill(model: Any, ids: Tensor) -> Tensor:
    """Read a whole prompt [1, T] into an empty cache; return the last logits [1, 1, vocabulary]."""
    return model(
        input_ids=ids, position_ids=_positions(0, ids.shape[1], ids.device), use_cache=True, logits_to_keep=1
    ).logits


def frame_inputs(model: Any, frame_size: tuple[int, int]) -> dict[str, Tensor]:
    """A picture of noise as input of the model: `ids` [1, T], and the keywords for its pixels."""
    vision, device = model.config.vision_config, model.device
    rows, columns = (side // vision.patch_size for side in frame_size)
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    num_tokens = rows * columns // vision.spatial_merge_size**2
    return {
        "ids": torch.full((1, num_tokens), model.config.image_token_id, device=device),
        "pixel_values": torch.randn(rows * columns, width, dtype=model.dtype, device=device),
        "image_grid_thw": torch.tensor([[1, rows, columns]], device=device),
    }


def _positions(start: int, count: int, device: torch.device) -> Tensor:
    """Positions of text, the same on the three axes: int64 [3, 1, T]."""
    return torch.arange(start, start + count, device=device).expand(3, 1, -1).contiguous()


def _head_dim(model: Any) -> int:
    text = model.config.text_config
    return text.hidden_size // text.num_attention_heads


def _random_past(model: Any, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random keys and values [1, H_kv, context, D], layer by layer."""
    text, generator = model.config.text_config, torch.Generator(model.device).manual_seed(seed)
    shape = (1, text.num_key_value_heads, context, _head_dim(model))
    for _ in range(text.num_hidden_layers):
        keys, values = (torch.empty(shape, dtype=model.dtype, device=model.device) for _ in range(2))
        yield keys.normal_(generator=generator), values.normal_(generator=generator)


def _fill(cache: Any, model: Any, context: int, seed: int) -> None:
    """Fill a growing cache with random values, without the copies of its own update."""
    for layer, (keys, values) in zip(cache.layers, _random_past(model, context, seed), strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values


def _static_cache(model: Any, context: int, seed: int) -> tuple[Any, Tensor]:
    """Fill a cache of fixed size; return it with the fill levels of its layers, int64 [layers]."""
    text = model.config.get_text_config(decoder=True)
    cache: Any = StaticCache(config=text, max_cache_len=context + 1)
    cache.early_initialization(1, text.num_key_value_heads, _head_dim(model), model.dtype, model.device)
    lengths = torch.full((len(cache.layers),), context, dtype=torch.int64, device=model.device)
    past = _random_past(model, context, seed)
    for layer, length, (keys, values) in zip(cache.layers, lengths, past, strict=True):
        layer.keys[:, :, :context] = keys
        layer.values[:, :, :context] = values
        layer.cumulative_length = length  # a view: all of them are set back in one go
    return cache, lengths
