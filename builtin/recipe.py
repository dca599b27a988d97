"""The settings of a supervised run, read from one YAML file."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from infinitevl.config import InfiniteVLConfig, InfiniteVLTextConfig, InfiniteVLVisionConfig
from infinitevl.errors import InputError

_TEXT_TOKENS = {"bos": "<|endoftext|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"}
_MEDIA_TOKENS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}


@dataclass(frozen=True)
class Recipe:
    """One run. Learning rates are peaks; shares and weights are 0..1; `minutes` counts training alone.

    keyed_share: of the second batches, how many practise keyed recall. start_from: a folder whose weights the
    model starts with, but for those of mixers that it has not; None starts from nothing. vision_rate: of the
    learning rate, for the vision encoder. looks: of the drawings, how many wear a look; above 0, drawings of
    all hands are shown.
    """

    seed: int
    vocabulary: int
    vision: dict[str, Any]
    decoder: dict[str, Any]
    minutes: float
    dense_share: float
    num_pictures: int
    dense_weight: float
    learning_rate: float
    dense_learning_rate: float
    warm_up_steps: int
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    keyed_share: float = 0.0
    start_from: str | None = None
    vision_rate: float = 1.0
    looks: float = 0.0

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Raises InputError that names unknown and missing settings."""
        found = yaml.safe_load(Path(path).read_text())
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not needed <= set(found) <= known:
            unknown, missing = sorted(set(found) - known), sorted(needed - set(found))
            raise InputError(f"{path}: unknown settings {unknown}, missing ones {missing}")
        return cls(**{**found, "betas": tuple(found["betas"])})

    def config(self, token_ids: dict[str, int]) -> InfiniteVLConfig:
        """The model's configuration; `token_ids` are those of the special tokens."""
        text = {**self.decoder, "vocab_size": self.vocabulary}
        text |= {f"{name}_token_id": token_ids[token] for name, token in _TEXT_TOKENS.items()}
        media: dict[str, Any] = {
            f"{name}_token_id": token_ids[token] for name, token in _MEDIA_TOKENS.items()
        }
        vision = {**self.vision, "out_hidden_size": self.decoder["hidden_size"]}
        return InfiniteVLConfig(
            text_config=InfiniteVLTextConfig(**text),
            vision_config=InfiniteVLVisionConfig(**vision),
            **media,
        )
