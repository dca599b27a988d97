"""Build the models to measure: the 4B shape with random weights, the built-in one, a tiny one for tests."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.config import InfiniteVLConfig
from infinitevl.engine.loading import load
from infinitevl.errors import InputError
from infinitevl.model.attention_variants import apply_variant_
from infinitevl.model.decoder import RotaryEmbedding
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.processor.processor import PUBLISHED_FRAME_SIZE, InfiniteVLProcessor

SIZES = ("4b", "builtin", "tiny")
PUBLISHED_BYTES = 9e9  # 4.41 B weights in 16 bits
FRAME_SIZES = {"4b": PUBLISHED_FRAME_SIZE, "tiny": 56}
TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "mrope_section": [1, 1, 2],
    "sliding_window": 12,
    "num_linear_heads": 2,
    "num_linear_key_value_heads": 2,
    "linear_head_dim": 8,
    "bos_token_id": 499,
    "eos_token_id": 501,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
    "image_token_id": 505,
    "video_token_id": 506,
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 52,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 32,
    },
}
# softplus of this is 0.001, where a new Gated DeltaNet starts
_DT_BIAS_START = -6.907255


def model_of_size(
    size: str, device: str | torch.device, dtype: torch.dtype, attention: str | None = None
) -> tuple[InfiniteVLForConditionalGeneration, InfiniteVLProcessor]:
    """Build a model and its processor; "4b" and "tiny" have random weights, created on the device.

    attention: the variant of attention as in `load`; None for the size's own.

    Raises:
        InputError: an unknown size, or a device without the memory for it.
    """
    if size not in SIZES:
        raise InputError(f"there is no size {size!r}; choose one of {', '.join(SIZES)}.")
    if size == "builtin":
        return load(None, dtype=dtype, device=device, attention=attention)
    config = InfiniteVLConfig() if size == "4b" else InfiniteVLConfig(**TINY)
    if attention is not None:
        apply_variant_(config, attention)
    if size == "4b":
        check_memory(PUBLISHED_BYTES, device, "--size 4b")
    processor = InfiniteVLProcessor(
        Qwen2VLImageProcessorPil(), byte_tokenizer(config), None, FRAME_SIZES[size]
    )
    return random_model(config, device, dtype), processor


def check_memory(needed: float, device: str | torch.device, what: str) -> None:
    """Check that a device has enough memory for what is about to be created there.

    Raises:
        InputError: it is no GPU, or one with too little free memory.
    """
    where, gigabytes = torch.device(device), f"about {needed / 1e9:.0f} GB"
    if where.type != "cuda":
        raise InputError(
            f"{what} needs {gigabytes} and a CUDA device, and the device is {where}; "
            "use --size builtin here, or a machine with a GPU."
        )
    free = torch.cuda.mem_get_info(where)[0]
    if free < needed:
        raise InputError(
            f"{what} needs {gigabytes}, and {where} has {free / 1e9:.1f} GB free; "
            "end what else runs there, or use --size builtin."
        )


def random_model(
    config: InfiniteVLConfig, device: str | torch.device, dtype: torch.dtype
) -> InfiniteVLForConditionalGeneration:
    """Build a model of this shape directly on the device, which takes seconds."""
    with torch.device("meta"):
        model = InfiniteVLForConditionalGeneration(config)
    model.to(dtype=dtype)  # type: ignore[call-arg]
    model.to_empty(device=device)
    model.tie_weights()
    for module in model.modules():
        if isinstance(module, RotaryEmbedding):
            module.reset_buffers_()
    fill_weights_(model)
    return model.eval()


@torch.no_grad()
def fill_weights_(model: nn.Module, seed: int = 0) -> None:
    """Fill in random weights that keep activations in range: no overflow, no layer without effect."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            fan_in = math.prod(weight.shape[1:])
            weight.normal_(0.0, fan_in**-0.5, generator=generator)
        else:
            weight.fill_(_vector_start(name))


def _vector_start(name: str) -> float:
    """Set a norm's scale to one, a bias and the logarithm of A to zero."""
    if name.endswith("dt_bias"):
        return _DT_BIAS_START
    return 0.0 if name.endswith(("bias", "A_log")) else 1.0


def byte_tokenizer(config: InfiniteVLConfig) -> PreTrainedTokenizerFast:
    """Build a tokenizer with bytes as tokens and the special tokens where the config has them."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = _special_ids(config)
    backend = Tokenizer(models.BPE({**alphabet, **special}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def _special_ids(config: InfiniteVLConfig) -> dict[str, int]:
    """Names and ids of Qwen's special tokens, in Qwen's order; the config names some of them."""
    eos = config.eos_token_id
    assert isinstance(eos, int), "sizes have one token that ends an answer"
    return {
        "<|endoftext|>": config.bos_token_id,
        "<|im_start|>": eos - 1,
        "<|im_end|>": eos,
        "<|vision_start|>": config.vision_start_token_id,
        "<|vision_end|>": config.vision_end_token_id,
        "<|vision_pad|>": config.vision_end_token_id + 1,
        "<|image_pad|>": config.image_token_id,
        "<|video_pad|>": config.video_token_id,
    }


def random_ids(
    config: InfiniteVLConfig, num_tokens: int, device: str | torch.device, seed: int = 0
) -> Tensor:
    """Random ordinary tokens: int64 [1, num_tokens]."""
    generator = torch.Generator(device).manual_seed(seed)
    end = min(256, config.text_config.vocab_size)
    return torch.randint(0, end, (1, num_tokens), generator=generator, device=device)


def random_frames(count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Random frames in host memory: uint8 [count, height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)
