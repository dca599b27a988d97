"""What is being taught: the model, and two heads that name what lies under each patch while its eyes open."""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from builtin.feed.batches import GRID, Batch
from builtin.world.packs import CHARACTERS
from builtin.world.render import FRAME_SIZE, PATCH, PatchNames
from infinitevl.config import LINEAR
from infinitevl.errors import InputError
from infinitevl.model.delta_net import GatedDeltaNet
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.vision import vision_plan
from infinitevl.processing.images import frame_patches

# The gates of a layer's heads start with memories of about these many tokens.
_SPANS = (10.0, 100.0, 1_000.0, 10_000.0)


class Learner(nn.Module):
    """A model and its dense heads. `num_objects`: sorts of things that `PatchNamer` tells apart."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, num_objects: int):
        super().__init__()
        self.model = model
        width = model.config.text_config.hidden_size
        self.characters = nn.Linear(width, 4 * (len(CHARACTERS) + 1))
        self.objects = nn.Linear(width, num_objects + 1)

    def features(self, frames: Tensor) -> Tensor:
        """uint8 [N, 3, 112, 112] -> [N * 16, C]."""
        side = FRAME_SIZE // PATCH
        visual = self.model.model.visual
        plan = vision_plan(((1, side, side),) * len(frames), visual.sizes, frames.device)
        return visual.encode(frame_patches(frames), plan)

    def dense_loss(self, features: Tensor, names: PatchNames) -> Tensor:
        """How badly each merged token names the characters of its four patches and its object."""
        characters = _in_blocks(names.characters + 1)  # [N * 16, 4], 0: nothing
        objects = _in_blocks(names.objects + 1).amax(-1)
        logits = self.characters(features).unflatten(-1, (4, -1))
        named = F.cross_entropy(logits.flatten(0, 1).float(), characters.flatten(), label_smoothing=0.02)
        return named * 2 + F.cross_entropy(self.objects(features).float(), objects)

    def answer_loss(self, features: Tensor | None, batch: "DeviceBatch") -> Tensor:
        """Cross-entropy of the answers' tokens; `features` of the batch's own frames."""
        decoder = self.model.model.language_model
        embeds = decoder.embed_tokens(batch.ids)
        if features is not None:
            flat = embeds.flatten(0, 1)
            taken = features[batch.features].to(flat.dtype)
            embeds = flat.index_put((batch.places,), taken).view_as(embeds)
        hidden = decoder(embeds, batch.positions).flatten(0, 1)
        return F.cross_entropy(self.model.lm_head(hidden[batch.asked]).float(), batch.answers)


class DeviceBatch:
    """A batch's tensors on the device."""

    def __init__(self, batch: Batch, device: torch.device):
        names = ("ids", "positions", "places", "features", "asked", "answers")
        self.ids, self.positions, self.places, self.features, self.asked, self.answers = (
            _send(torch.from_numpy(getattr(batch, name)), device) for name in names
        )


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _in_blocks(patches: Tensor) -> Tensor:
    """[N, 64] in reading order -> [N * 16, 4], the patches of each merged token."""
    blocks = patches.view(-1, GRID, 2, GRID, 2).transpose(2, 3)
    return blocks.reshape(-1, 4)


@torch.no_grad()
def inherit_(model: InfiniteVLForConditionalGeneration, folder: str | os.PathLike[str]) -> list[str]:
    """Take over the weights of the model in `folder`, in place, except mixers of another kind.

    Returns:
        The names of the weights that stay as they are.

    Raises:
        CheckpointError: the folder holds no usable model.
        InputError: a weight there has another shape.
    """
    older = InfiniteVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    given, kept = dict(older.named_parameters()), []
    kinds = [kind == LINEAR for kind in model.config.text_config.layer_types]
    before = [kind == LINEAR for kind in older.config.text_config.layer_types]
    for name, weight in model.named_parameters():
        if _is_other_mixer(name, kinds, before):
            kept.append(name)
        elif name not in given or given[name].shape != weight.shape:
            raise InputError(
                f"{folder} has no {name} of shape {tuple(weight.shape)}; start from another model."
            )
        else:
            weight.copy_(given[name])
    return kept


def _is_other_mixer(name: str, kinds: list[bool], before: list[bool]) -> bool:
    """Whether a weight belongs to a mixer that is attention in one model and a delta net in the other."""
    parts = name.split(".")
    if parts[1:3] != ["language_model", "layers"] or parts[4] != "self_attn":
        return False
    number = int(parts[3])
    return number >= len(before) or kinds[number] != before[number]


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
