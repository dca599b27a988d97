"""A new model of the small world, as the folder that its first stage starts from.

    python -m builtin.start builtin/recipes/hybrid/shape.yaml --out runs/hybrid/start

With `--weights FOLDER` it takes over those of another model, except mixers of another kind.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt, ValidationError
from torch import nn

from builtin.command import command
from builtin.package import save_processor
from builtin.vocabulary import open_tokenizer
from infinitevl.config import LINEAR, InfiniteVLConfig, InfiniteVLTextConfig, InfiniteVLVisionConfig
from infinitevl.errors import InputError
from infinitevl.model.delta_net import GatedDeltaNet
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.recipes import explained, read_yaml
from infinitevl.training.settings import Strict
from infinitevl.training.starts import open_start
from infinitevl.training.surgery import check_new

_TEXT_TOKENS = {"bos": "<|endoftext|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"}
_MEDIA_TOKENS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
# The gates of a layer's heads start with memories of about these many tokens.
_SPANS = (10.0, 100.0, 1_000.0, 10_000.0)


class Shape(Strict):
    """The sizes of a model."""

    vocabulary: PositiveInt = Field(description="Tokens.")
    vision: dict[str, Any] = Field(description="Of the configuration's vision encoder.")
    decoder: dict[str, Any] = Field(description="Of the configuration's decoder.")

    def config(self, token_ids: dict[str, int]) -> InfiniteVLConfig:
        """The model's configuration; `token_ids` are those of the special tokens."""
        text = {**self.decoder, "vocab_size": self.vocabulary}
        text |= {f"{name}_token_id": token_ids[token] for name, token in _TEXT_TOKENS.items()}
        media: dict[str, Any] = {
            f"{name}_token_id": token_ids[token] for name, token in _MEDIA_TOKENS.items()
        }
        vision = {**self.vision, "out_hidden_size": self.decoder["hidden_size"]}
        return InfiniteVLConfig(
            text_config=InfiniteVLTextConfig(**text), vision_config=InfiniteVLVisionConfig(**vision), **media
        )


def read_shape(path: str | Path) -> Shape:
    """A shape from a YAML file; InputError that names what is unknown, missing or wrong."""
    try:
        return Shape.model_validate(read_yaml(path))
    except ValidationError as error:
        raise explained(error, str(path), Shape.model_fields) from error


def write_start(shape: Shape, tokenizer: Path, out: Path, seed: int = 0, weights: str | None = None) -> None:
    """Write a new model of a shape, bfloat16, with its processor.

    Args:
        tokenizer: the file of `builtin.build_data`. weights: a model whose weights it takes over, except for
            mixers of another kind; None for a start from nothing.

    Raises:
        InfiniteVLError: no such file or model, or weights of other shapes.
    """
    words = open_tokenizer(tokenizer)
    ids = {token: words.token_to_id(token) for token in (*_TEXT_TOKENS.values(), *_MEDIA_TOKENS.values())}
    torch.manual_seed(seed)
    model = InfiniteVLForConditionalGeneration(shape.config(ids))
    start_weights_(model)
    if weights is not None:
        inherit_(model, weights)
    model.to(torch.bfloat16).save_pretrained(out)
    save_processor(tokenizer, out)


@torch.no_grad()
def start_weights_(model: InfiniteVLForConditionalGeneration) -> None:
    """Starting values for a small model that learns from nothing: a published-size start would leave mixers
    mute."""
    depth = model.config.text_config.num_hidden_layers + model.config.vision_config.depth
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(("lm_head", "a_proj", "b_proj")):
            scale = module.in_features**-0.5
            if name.endswith(("o_proj", "down_proj", ".proj")):
                scale /= depth**0.5
            module.weight.normal_(0, scale)
        if isinstance(module, GatedDeltaNet):
            spans = torch.tensor(_SPANS).repeat(-(-len(module.dt_bias) // len(_SPANS)))[: len(module.dt_bias)]
            module.dt_bias.copy_(torch.expm1(1 / spans).log())
    model.model.language_model.embed_tokens.weight.normal_(0, 0.02)
    patch = model.model.visual.patch_embed.proj
    patch.weight.normal_(0, patch.weight[0].numel() ** -0.5)


@torch.no_grad()
def inherit_(model: InfiniteVLForConditionalGeneration, name: str | os.PathLike[str]) -> list[str]:
    """Take over the weights of another model, in place, except mixers of another kind.

    Returns:
        The names of the weights that stay as they are.

    Raises:
        CheckpointError: the folder holds no usable model.
        InputError: a weight there has another shape.
    """
    older = open_start(str(name)).float()
    given, kept = dict(older.named_parameters()), []
    kinds = [kind == LINEAR for kind in model.config.text_config.layer_types]
    before = [kind == LINEAR for kind in older.config.text_config.layer_types]
    for key, weight in model.named_parameters():
        if _is_other_mixer(key, kinds, before):
            kept.append(key)
        elif key not in given or given[key].shape != weight.shape:
            raise InputError(f"{name} has no {key} of shape {tuple(weight.shape)}; start from another model.")
        else:
            weight.copy_(given[key])
    return kept


def _is_other_mixer(name: str, kinds: list[bool], before: list[bool]) -> bool:
    """Whether a weight belongs to a mixer that is attention in one model and a delta net in the other."""
    parts = name.split(".")
    if parts[1:3] != ["language_model", "layers"] or parts[4] != "self_attn":
        return False
    number = int(parts[3])
    return number >= len(before) or kinds[number] != before[number]


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Make a new model of the small world.")
    parser.add_argument("shape", type=Path, help="a shape.yaml of builtin/recipes")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the model")
    parser.add_argument("--weights", help="a model whose weights it takes over; default: from nothing")
    parser.add_argument("--tokenizer", type=Path, default=Path(".data/tokenizer.json"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    check_new(arguments.out)
    shape = read_shape(arguments.shape)
    write_start(shape, arguments.tokenizer, arguments.out, arguments.seed, arguments.weights)
    print(f"The new model is in {arguments.out}.")


if __name__ == "__main__":
    main()
