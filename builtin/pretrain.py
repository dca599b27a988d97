"""Pretraining: a small model learns to see and to answer, which the published stages expect of their start.

It runs on the package's loop, with losses of its own. A vision encoder without any start does not take off
within minutes from answers alone, so two heads beside the model name what lies under each patch.
"""

import math
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from builtin.feed.rows import GRID
from builtin.feed.scenes import SceneFeed
from builtin.world.packs import CHARACTERS
from builtin.world.render import FRAME_SIZE, PATCH
from infinitevl.errors import InputError
from infinitevl.model.fused import training_kernels
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.vision import vision_plan
from infinitevl.training.losses import answer_loss
from infinitevl.training.model_setup import checkpoint_layers_, compile_layers_, keep_activations_, move_
from infinitevl.training.recipes import StageRecipe, identity
from infinitevl.training.stage import check_new_run, draw_curve, leave
from infinitevl.training.stages.inputs import Batch, answers, picked
from infinitevl.training.starts import MODEL, open_processor, open_start
from infinitevl.training.task import LossModule, TrainTask
from infinitevl.training.trainer import Trainer, processes

VISION, DECODER = "vision", "decoder"
HEADS = "heads.safetensors"
_SMOOTHING, _CHARACTERS_COUNT = 0.02, 2.0  # of naming characters: label smoothing, and times objects


class Pretrain(StageRecipe):
    """A stage of the built-in model before there is a teacher: it learns answers, and to name patches."""

    stage: Literal["pretrain"] = Field(description="Which stage this is.")
    trains: list[Literal["vision", "decoder"]] = Field(
        min_length=1, description="The vision encoder, or all else of the model, or both."
    )
    answers: float = Field(1.0, ge=0, description="Weight of the answers' cross-entropy.")
    patches: float = Field(0.0, ge=0, description="Weight of naming what is under each patch.")
    vision_rate: float = Field(1.0, ge=0, description="Times the learning rate, for the vision encoder.")
    heads: str | None = Field(None, description="What named patches in the stage before; default: new heads.")
    sharding: Literal["none"] = Field("none", description="Each process holds all weights.")


class Learner(nn.Module):
    """A model, and heads that name what lies under each patch.

    Args:
        num_objects: sorts of things that `PatchNamer` tells apart.
        weights: of the losses, by name; those of 0 are not computed.
    """

    def __init__(
        self, model: InfiniteVLForConditionalGeneration, num_objects: int, weights: dict[str, float]
    ):
        super().__init__()
        self.model, self.weights = model, weights
        width = model.config.text_config.hidden_size
        self.heads = nn.ModuleDict(
            {
                "characters": nn.Linear(width, 4 * (len(CHARACTERS) + 1)),
                "objects": nn.Linear(width, num_objects + 1),
            }
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of a batch, a mean over its answers or patches, times its weight."""
        features = self.features(batch) if "pixel_values" in batch else None
        found = {}
        if self.weights["answers"]:
            found["answer_loss"] = self.weights["answers"] * self.answer_loss(features, batch)
        if self.weights["patches"] and features is not None and "characters" in batch:
            found["patch_loss"] = self.weights["patches"] * self.patch_loss(features, batch)
        first = next(iter(found))
        return {**found, first: found[first] + self._reaching_all(batch)}

    def features(self, batch: Batch) -> Tensor:
        """Of N pictures of 112 x 112: [N * 16, C]."""
        side, visual = FRAME_SIZE // PATCH, self.model.model.visual
        count = len(batch["image_grid_thw"])
        plan = vision_plan(((1, side, side),) * count, visual.sizes, batch["pixel_values"].device)
        return visual.encode(batch["pixel_values"], plan)

    def answer_loss(self, features: Tensor | None, batch: Batch) -> Tensor:
        """Cross-entropy of the answers' tokens; the batch's pictures are in `features`."""
        model, ids = self.model, batch["input_ids"]
        asked, labels = answers(batch)
        embeds = model.model.embed(ids)
        if features is not None:
            places = ids == model.config.image_token_id
            embeds = embeds.masked_scatter(places[..., None], features.to(embeds))
        hidden = model.model.language_model(embeds, batch["position_ids"])
        found = picked(hidden, asked.flatten().nonzero()[:, 0])
        return answer_loss(found, model.lm_head.weight, labels) / len(labels)

    def patch_loss(self, features: Tensor, batch: Batch) -> Tensor:
        """How badly each merged token names the characters of its four patches, and its object."""
        characters = _in_blocks(batch["characters"] + 1)  # [N * 16, 4], 0: nothing
        objects = _in_blocks(batch["objects"] + 1).amax(-1)
        logits = self.heads["characters"](features).unflatten(-1, (4, -1)).flatten(0, 1).float()
        named = F.cross_entropy(logits, characters.flatten(), label_smoothing=_SMOOTHING)
        return _CHARACTERS_COUNT * named + F.cross_entropy(self.heads["objects"](features).float(), objects)

    def _reaching_all(self, batch: Batch) -> Tensor | int:
        """Zero, with a gradient of zero for weights that this batch does not use: processes that exchange
        gradients wait for those of every weight."""
        unused: list[nn.Parameter] = []
        if "pixel_values" not in batch:
            unused += self.model.model.visual.parameters()
        if "characters" not in batch:
            unused += self.heads.parameters()
        return sum(weight.flatten()[:0].sum() for weight in unused if weight.requires_grad)


def _in_blocks(patches: Tensor) -> Tensor:
    """[N, 64] in reading order -> [N * 16, 4], the patches of each merged token."""
    blocks = patches.view(-1, GRID, 2, GRID, 2).transpose(2, 3)
    return blocks.reshape(-1, 4)


def open_learner(recipe: Pretrain, num_objects: int, device: torch.device) -> Learner:
    """The model to start from with its heads, where exactly the weights of the stage train.

    Raises:
        InfiniteVLError: there is no such model, or its heads are not there or of another world.
    """
    model = open_start(recipe.student)
    torch.manual_seed(recipe.seed)
    learner = Learner(model, num_objects, {"answers": recipe.answers, "patches": recipe.patches})
    if recipe.heads is not None:
        _load_heads_(learner, Path(recipe.heads))
    model.requires_grad_(DECODER in recipe.trains)
    model.model.visual.requires_grad_(VISION in recipe.trains)
    learner.heads.requires_grad_(recipe.patches > 0)
    move_(learner, recipe.torch_dtype, device)
    checkpoint_layers_(model, recipe.checkpointed_layers if recipe.gradient_checkpointing else 0)
    if recipe.compile:
        compile_layers_(model)
        for block in model.model.visual.blocks:  # every batch has equally many pictures
            block.compile(dynamic=False)
    return learner


def _load_heads_(learner: Learner, path: Path) -> None:
    try:
        learner.heads.load_state_dict(load_file(path))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path} does not hold heads for this model and world: {error}. An earlier pretraining with a "
            "weight of `patches` writes them; without `heads` in the recipe there are new ones."
        ) from error


def make_trainer(recipe: Pretrain, learner: Learner, feed: SceneFeed) -> Trainer:
    """The package's loop over a learner. Pictures and streams count the same, however long their answers."""
    dtype = None if recipe.torch_dtype == torch.float32 else recipe.torch_dtype
    module = LossModule(learner, learner.losses, dtype)

    def rate_of(name: str) -> float:
        return recipe.vision_rate if ".visual." in name else 1.0

    task = TrainTask(module, feed, count=lambda batch: 1, lr_scale=rate_of)
    return Trainer(task, recipe, Path(recipe.out), processes(), identity(recipe))


def teach(
    recipe: Pretrain,
    feed: SceneFeed,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    seconds: float = math.inf,
) -> Path | None:
    """Run a warm-up to its end, for `stop_after` steps or for so many seconds.

    Returns:
        The folder of the finished model, or None where steps are left, which are told.

    Raises:
        InfiniteVLError: what the recipe names is not there, or the run stopped; the message says why.
    """
    folder = Path(recipe.out)
    check_new_run(folder, resume)
    _check_draws(recipe, feed)
    accelerator = processes()
    learner = open_learner(recipe, feed.namer.num_objects, accelerator.device)
    trainer = make_trainer(recipe, learner, feed)
    if resume:
        trainer.resume()
    with training_kernels(learner, recipe.torch_dtype):
        complete = trainer.train(stop_after, seconds)
    if not complete:
        leave(trainer)
        return None
    trainer.sharding.restore_module()
    if accelerator.is_main_process:
        _finish(recipe, learner, folder)
    accelerator.wait_for_everyone()
    return folder / MODEL


def _check_draws(recipe: Pretrain, feed: SceneFeed) -> None:
    """Every batch must have something to learn."""
    named = [draw.named for draw in feed.planner.settings.draws]
    if recipe.patches > 0 and not any(named):
        raise InputError("`patches` has a weight, so at least one of the draws must be `named`.")
    if recipe.answers == 0 and not (recipe.patches > 0 and all(named)):
        raise InputError("`answers` has no weight, so `patches` needs one, and all draws must be `named`.")


def _finish(recipe: Pretrain, learner: Learner, folder: Path) -> None:
    """Write the model as a folder that loads, its heads, and the curve of the loss."""
    if recipe.patches > 0:
        folder.mkdir(parents=True, exist_ok=True)
        heads = {name: weight.float().contiguous() for name, weight in learner.heads.state_dict().items()}
        save_file(heads, folder / HEADS)
    keep_activations_(learner.model)
    learner.model.eval().to(torch.bfloat16).save_pretrained(folder / MODEL)
    open_processor(recipe.student).save_pretrained(folder / MODEL)
    draw_curve(folder, recipe.stage)
