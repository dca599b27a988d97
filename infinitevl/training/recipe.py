"""The settings of a supervised run, read from one YAML file."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """One run. Learning rates are peaks; shares and weights are 0..1; `minutes` counts training alone."""

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

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Raises InputError that names unknown and missing settings."""
        found = yaml.safe_load(Path(path).read_text())
        known = {field.name for field in fields(cls)}
        if set(found) != known:
            raise InputError(
                f"{path}: unknown settings {sorted(set(found) - known)}, missing ones {sorted(known - set(found))}"
            )
        return cls(**{**found, "betas": tuple(found["betas"])})

    def config(self, token_ids: dict[str, int]) -> InfiniteVLConfig:
        """The model's configuration; `token_ids` are those of the special tokens."""
        return InfiniteVLConfig(
            text_config={
                **self.decoder, "vocab_size": self.vocabulary, "bos_token_id": token_ids["<|endoftext|>"],
                "eos_token_id": token_ids["<|im_end|>"], "pad_token_id": token_ids["<|endoftext|>"],
            },
            vision_config={**self.vision, "out_hidden_size": self.decoder["hidden_size"]},
            image_token_id=token_ids["<|image_pad|>"],
            video_token_id=token_ids["<|video_pad|>"],
            vision_start_token_id=token_ids["<|vision_start|>"],
            vision_end_token_id=token_ids["<|vision_end|>"],
        )  # fmt: skip
