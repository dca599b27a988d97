"""What a recipe says of the small world: the `data` of a stage of the built-in model."""

import difflib
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from builtin.feed.buckets import BUCKETS
from infinitevl.training.recipes import Share, Strict

Weight = Annotated[float, Field(ge=0)]


class DrawSettings(Strict):
    """One batch of every step."""

    num_pictures: PositiveInt = Field(description="Frames of the batch; rows have as many as their bucket.")
    buckets: dict[str, Weight] = Field(
        min_length=1, description="What the batch holds: how often each of `builtin.feed.buckets` is taken."
    )
    buckets_at_end: dict[str, Weight] | None = Field(
        None, description="The same after the last step, with a straight line in between."
    )

    named: bool = Field(False, description="Whether each patch says what is under it, for pretraining.")

    @model_validator(mode="after")
    def _knows_its_buckets(self) -> "DrawSettings":
        for weights in (self.buckets, self.buckets_at_end or self.buckets):
            for name in weights:
                if name not in BUCKETS:
                    close = difflib.get_close_matches(name, BUCKETS, n=1)
                    raise ValueError(f"unknown bucket {name!r}; {_known_buckets(close)}")
            if not any(weights.values()):
                raise ValueError("at least one bucket needs a weight above 0")
        return self


def _known_buckets(close: list[str]) -> str:
    return f"did you mean {close[0]!r}?" if close else f"known ones: {', '.join(BUCKETS)}"


class SceneSettings(Strict):
    """The small world, drawn on the device while the stage runs."""

    pack: str = Field(description="The drawings, as `builtin.build_data` writes them.")
    split: Literal["train", "validation"] = Field("train", description="Whose strings the signs may show.")
    looks: Share = Field(
        0.0, description="Of the drawings, how many wear a look; above 0, all hands are shown."
    )
    wide: Share = Field(
        0.0,
        description="Of the pictures, how many are small, on plates, before photographs, damaged or flags in "
        "other outlines; above 0, foreign pictures and questions that no picture answers come too.",
    )
    own_words: Share = Field(
        0.0, description="Of the questions, how many are worded by hand, not by template."
    )
    draws: list[DrawSettings] = Field(min_length=1, description="The batches of a step, for each process.")


class SmallData(Strict):
    """What a stage of the built-in model reads."""

    scenes: SceneSettings = Field(description="What is drawn of the small world.")
    workers: int = Field(0, ge=0, description="Processes that plan ahead.")
