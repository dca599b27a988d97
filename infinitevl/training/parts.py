"""Says which weights train in which stage; no other file decides it.

The sets are those of the paper's three stages. The two norms of a layer train together with its feed-forward;
the last norm stays frozen with the LM head.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from torch import nn

from infinitevl.config import LINEAR

DISTILL_LAYERS, DISTILL_LOGITS, SFT, LONG_SFT = "distill-layers", "distill-logits", "sft", "long-sft"
STAGES = (DISTILL_LAYERS, DISTILL_LOGITS, SFT, LONG_SFT)


class Part(StrEnum):
    """What a weight belongs to."""

    VISION = "vision encoder and projector"
    EMBEDDING = "embedding, last norm and LM head"
    DELTA_NET = "Gated DeltaNet"
    ATTENTION = "window attention"
    FEED_FORWARD = "feed-forward"
    NORM = "norms of a layer"


TRAINED: dict[str, frozenset[Part]] = {
    DISTILL_LAYERS: frozenset({Part.DELTA_NET}),
    DISTILL_LOGITS: frozenset({Part.DELTA_NET}),
    SFT: frozenset({Part.DELTA_NET, Part.ATTENTION, Part.FEED_FORWARD, Part.NORM}),
    LONG_SFT: frozenset(),
}
# What `sft` may train. The paper trains mixers and feed-forward of all layers. So does the published code in
# commit 3bb5ccd; since 8cc1542 it trains the mixers alone (examples/train_linear/train_config_sft.yaml).
MIXERS_AND_FEED_FORWARD, MIXERS = "mixers-and-feed-forward", "mixers"
SFT_PARTS = {MIXERS_AND_FEED_FORWARD: TRAINED[SFT], MIXERS: frozenset({Part.DELTA_NET, Part.ATTENTION})}
# Parts whose projections get a LoRA adapter beside them.
ADAPTED = {LONG_SFT: frozenset({Part.DELTA_NET, Part.ATTENTION, Part.FEED_FORWARD})}

_LAYER = re.compile(r"model\.language_model\.layers\.(\d+)\.(self_attn|mlp|.*norm)\.")
# Full names of the modules beside which an adapter can stand: the projections of every layer.
PROJECTIONS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def part_of(name: str, layer_types: Sequence[str]) -> Part:
    """Returns the part that the weight `name` of an InfiniteVL belongs to."""
    layer = _LAYER.match(name)
    if layer is None:
        return Part.VISION if name.startswith("model.visual.") else Part.EMBEDDING
    number, module = int(layer[1]), layer[2]
    if module == "self_attn":
        return Part.DELTA_NET if layer_types[number] == LINEAR else Part.ATTENTION
    return Part.FEED_FORWARD if module == "mlp" else Part.NORM


def role(name: str, layer_types: Sequence[str], stage: str) -> str:
    """Returns what a stage does with a weight: "trains", "LoRA" (an adapter beside it), or "frozen"."""
    part = part_of(name, layer_types)
    if part in TRAINED[stage]:
        return "trains"
    is_projection = re.fullmatch(PROJECTIONS, name.removesuffix(".weight")) is not None
    return "LoRA" if part in ADAPTED.get(stage, ()) and is_projection else "frozen"


def freeze_(
    model: nn.Module, layer_types: Sequence[str], stage: str, parts: frozenset[Part] | None = None
) -> list[str]:
    """Freezes all weights but those of `parts` (default: the stage's); returns the names of the latter."""
    parts = TRAINED[stage] if parts is None else parts
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name, layer_types) in parts)
        trained += [name] if parameter.requires_grad else []
    return trained
