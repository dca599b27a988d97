"""The school with tiny numbers: every step runs, nothing is learnt."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from builtin.feed.settings import DrawSettings
from builtin.stages import SmallStage
from builtin.start import Shape
from infinitevl.training.recipes import LongSft, LoraSettings


@dataclass(frozen=True)
class Sizes:
    """How tiny. lengths: frames of streams in exams."""

    num_steps: int = 2
    num_pictures: int = 4
    samples: int = 2
    lengths: tuple[int, ...] = (4, 8)
    longest: int = 16  # frames in a bucket


def tiny_shape(shape: Shape) -> Shape:
    """A model of a thousandth of the size."""
    decoder = shape.decoder | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "mrope_section": [2, 3, 3],
        "num_linear_heads": 2,
        "num_linear_key_value_heads": 2,
        "linear_head_dim": 8,
    }
    if "layer_types" in decoder:
        decoder["layer_types"] = decoder["layer_types"][:4]
    vision = shape.vision | {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
    return shape.model_copy(update={"vision": vision, "decoder": decoder})


def tiny_stage(stage: SmallStage, sizes: Sizes) -> SmallStage:
    """The same stage with few pictures, short streams and small adapters, in float32."""
    scenes = stage.data.scenes
    draws = [_tiny_draw(draw, sizes) for draw in scenes.draws if _short(draw, sizes)]
    data = stage.data.model_copy(update={"scenes": scenes.model_copy(update={"draws": draws})})
    changes: dict[str, Any] = {"dtype": "float32", "compile": False}
    if isinstance(stage.recipe, LongSft):
        changes["lora"] = LoraSettings(rank=4, alpha=8)
    return dataclasses.replace(stage.changed(**changes), data=data)


def _tiny_draw(draw: DrawSettings, sizes: Sizes) -> DrawSettings:
    return DrawSettings(num_pictures=sizes.num_pictures, buckets=_short(draw, sizes), named=draw.named)


def _short(draw: DrawSettings, sizes: Sizes) -> dict[str, float]:
    """The buckets whose streams are short enough."""
    return {name: weight for name, weight in draw.buckets.items() if _frames(name) <= sizes.longest}


def _frames(bucket: str) -> int:
    digits = bucket.lstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits) if digits else 1
