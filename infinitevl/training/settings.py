"""Settings of the training loop. Recipes extend them with a model, data and a stage."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, found: Any) -> Any:
        """Refuse true (YAML's `yes`, `on`) where no bool is meant: pydantic would take it for 1."""
        for name, value in found.items() if isinstance(found, dict) else ():
            known = cls.model_fields.get(name) if isinstance(name, str) else None
            if isinstance(value, bool) and known is not None and known.annotation is not bool:
                raise ValueError(f"{name}: {value} is neither a number nor text; write text in quotes")
        return found


class TrainerSettings(Strict):
    """What `Trainer` reads: optimizer, schedule, checkpoints and log."""

    num_steps: PositiveInt = Field(lt=2**53, description="Steps of the optimizer.")
    learning_rate: PositiveFloat = Field(description="Peak, after the warm-up; a cosine to zero follows.")
    warm_up: Share = Field(default=0.05, description="Share of the steps in which the learning rate rises.")
    betas: tuple[Share, Share] = Field(default=(0.9, 0.999), description="AdamW's.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's, on matrices alone.")
    clip: PositiveFloat = Field(default=1.0, description="Largest norm of the gradient.")
    sharding: Literal["none", "fsdp", "fsdp-grad-op"] = Field(
        default="none",
        description="With several processes: each holds all weights, or a part of each layer's (FSDP2), with "
        '"grad-op" whole layers between forward and backward.',
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the samples' order and of dropout.")
    save_every: PositiveInt = Field(default=200, description="Steps between checkpoints.")
    log_every: PositiveInt = Field(default=1, description="Steps between lines of the log.")
    log_to: list[Literal["tensorboard", "wandb"]] = Field(
        default=[], description="Where the log is shown too."
    )
