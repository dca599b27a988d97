"""Small models and inputs for tests, with weights scaled so that every layer matters."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.config import InfiniteVLConfig
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.processor.processor import InfiniteVLProcessor

DATA = Path(__file__).parent / "data"
SPECIAL = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|im_start|>",
)
TINY_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 52,
    "window_size": 56,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 32,
}
TINY_TEXT: dict[str, Any] = {
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
    "bos_token_id": 500,
    "eos_token_id": 501,
}
TINY_IDS = {
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
    "image_token_id": 505,
    "video_token_id": 506,
}


def relative_error(given: Tensor, wanted: Tensor) -> float:
    """||given - wanted|| / ||wanted|| over the whole tensor, in float64."""
    given, wanted = given.double(), wanted.double()
    return ((given - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


def adapter_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of LoRA adapters, in the model's order."""
    return [weight for name, weight in model.named_parameters() if ".lora_" in name]


def tiny_config(**overrides: Any) -> InfiniteVLConfig:
    """Four layers, a window of 12, ids of `tiny_tokenizer`."""
    return InfiniteVLConfig(**{**TINY_TEXT, **TINY_IDS, "vision_config": dict(TINY_VISION), **overrides})


def tiny_model(seed: int = 0, **overrides: Any) -> InfiniteVLForConditionalGeneration:
    """A model of `tiny_config` whose every layer matters."""
    torch.manual_seed(seed)
    model = InfiniteVLForConditionalGeneration(tiny_config(**overrides)).eval()
    scale_weights_(model)
    return model


@torch.no_grad()
def scale_weights_(model: nn.Module) -> None:
    """Matrices at fan_in^-0.5, norms near 1, decays between fast and slow, convolutions that mix."""
    for name, weight in model.named_parameters():
        if name.endswith("A_log"):
            weight.copy_(torch.linspace(-1.0, 1.0, weight.numel()))
        elif name.endswith("dt_bias"):
            weight.copy_(torch.linspace(-3.0, 0.0, weight.numel()))
        elif "conv1d" in name:
            weight.copy_(torch.randn_like(weight) * 0.5)
        elif weight.dim() == 1:
            weight.copy_((0.0 if name.endswith("bias") else 1.0) + 0.1 * torch.randn_like(weight))
        else:
            weight.copy_(torch.randn_like(weight) * weight[0].numel() ** -0.5)


def small_model(**kwargs: Any) -> InfiniteVLForConditionalGeneration:
    """The checkpoint of the reference vectors in float32."""
    kwargs.setdefault("dtype", torch.float32)
    return InfiniteVLForConditionalGeneration.from_pretrained(DATA / "small", **kwargs).eval()


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """500 byte-level tokens, then the special ones at the ids of the reference checkpoint."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    words = [f"word{a}{b} the sign says {b}{a}" for a in "abcdefghijklm" for b in "nopqrstuvwxyz"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(words, trainer)
    filler = [f"filler{i}" for i in range(500 - backend.get_vocab_size())]
    backend.add_tokens(filler)
    backend.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[t for t in SPECIAL if t not in ("<|im_end|>", "<|endoftext|>")],
    )
    return tokenizer


def prompt_inputs(config: InfiniteVLConfig, seed: int = 0) -> dict[str, Tensor]:
    """Text, a picture of 2 x 3 tokens, text, a video of 2 patches of 2 x 2 tokens, text."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 400, (1, 40), generator=generator)
    ids[0, 5:11], ids[0, 20:28] = config.image_token_id, config.video_token_id
    dim = config.vision_config.patch_dim
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(24, dim, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "pixel_values_videos": torch.randn(32, dim, generator=generator),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
        "second_per_grid_ts": torch.tensor([0.5]),
    }


@cache
def tiny_processor() -> InfiniteVLProcessor:
    """`tiny_tokenizer` and frames of 56 pixels, four tokens each."""
    return InfiniteVLProcessor(Qwen2VLImageProcessorPil(), tiny_tokenizer(), frame_size=56)


def random_frame(seed: int, size: int = 56) -> Tensor:
    """uint8 [3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
