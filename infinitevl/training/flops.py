"""Counts the floating-point operations that a stage's step needs, whatever its kernels do.

Per weight and token: 2 forward, 2 for the gradient of its input, 2 for its own where it trains. Attention
counts pairs of query and key that see each other, the delta rule its definition token by token; both cost
twice as much again in the backward pass. What is computed anew (gradient checkpointing), norms, convolutions
and other work per channel do not count.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from infinitevl.config import FULL, LINEAR, InfiniteVLConfig, InfiniteVLTextConfig, InfiniteVLVisionConfig
from infinitevl.training.parts import DISTILL_LAYERS, DISTILL_LOGITS

FORWARD, WITH_INPUT_GRADIENT, WITH_ALL_GRADIENTS = 2, 4, 6
_BACKWARD = 2  # times the forward pass, for operations without weights
_DELTA_RULE = 6  # per entry of the recurrent state and token: read at k, write, read at q, 2 each
# Dense bfloat16 products, operations a second, as makers state them.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


@dataclass(frozen=True)
class Work:
    """The size of a batch.

    sequences: tokens of each. grids: (temporal patches, rows, columns of patches) of each picture or video.
    answers: tokens whose logits are made.
    """

    sequences: tuple[int, ...]
    grids: tuple[tuple[int, int, int], ...]
    answers: int

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self.sequences)


@dataclass(frozen=True)
class Weights:
    """Numbers of matrix entries: of each decoder layer, of the vision encoder, and of the LM head."""

    frozen: tuple[int, ...]
    trained: tuple[int, ...]
    vision: int
    merger: int
    head: int

    @classmethod
    def of(cls, model: nn.Module, num_layers: int) -> "Weights":
        """Counts those of an InfiniteVL with `num_layers` decoder layers, and of its adapters, if any."""
        frozen, trained, vision, merger = [0] * num_layers, [0] * num_layers, 0, 0
        for name, weight in model.named_parameters():
            if weight.dim() != 2 and not name.endswith("patch_embed.proj.weight"):
                continue
            if ".layers." in name:
                layer = int(name.split(".layers.")[1].split(".")[0])
                (trained if weight.requires_grad else frozen)[layer] += weight.numel()
            elif ".merger." in name:
                merger += weight.numel()
            elif ".visual." in name:
                vision += weight.numel()
        head = model.get_output_embeddings().weight.numel()  # type: ignore[operator]
        return cls(tuple(frozen), tuple(trained), vision, merger, head)


def stage_flops(
    stage: str,
    config: InfiniteVLConfig,
    student: Weights,
    work: Work,
    teacher: InfiniteVLConfig | None = None,
) -> float:
    """Counts the operations of one batch, forward and backward.

    Args:
        config, student: the student's. teacher: its configuration where the stage has one.
    """
    total = float(vision_flops(config.vision_config, student, work))
    if stage == DISTILL_LAYERS:
        total += _learning_layers(config.text_config, student, work)
    else:
        total += _learning_all(config.text_config, student, work)
        total += WITH_INPUT_GRADIENT * student.head * work.answers
    if teacher is not None:
        total += _forward(teacher.text_config, work)
    if stage == DISTILL_LOGITS:
        total += FORWARD * student.head * work.answers
    return total


def vision_flops(config: InfiniteVLVisionConfig, weights: Weights, work: Work) -> int:
    """Counts the encoder's forward pass; it is frozen in every stage."""
    patches = sum(time * height * width for time, height, width in work.grids)
    merged = patches // config.spatial_merge_size**2
    pairs = sum(_vision_pairs(config, grid) for grid in work.grids)
    return FORWARD * (weights.vision * patches + weights.merger * merged) + 4 * config.hidden_size * pairs


def _vision_pairs(config: InfiniteVLVisionConfig, grid: tuple[int, int, int]) -> int:
    """Counts pairs of patches that see each other, over all blocks."""
    time, height, width = grid
    side = config.window_size // config.patch_size
    rows = [min(side, height - start) for start in range(0, height, side)]
    columns = [min(side, width - start) for start in range(0, width, side)]
    windows = time * sum((row * column) ** 2 for row in rows for column in columns)
    full = len(config.fullatt_block_indexes)
    return full * time * (height * width) ** 2 + (config.depth - full) * windows


def mixer_flops(config: InfiniteVLTextConfig, kind: str, sequences: Iterable[int]) -> int:
    """Counts the forward pass of a layer between its projections."""
    if kind == LINEAR:
        entries = config.num_linear_heads * config.linear_head_dim * config.linear_value_dim
        return _DELTA_RULE * entries * sum(sequences)
    window = None if kind == FULL else config.num_window_slots  # sinks and window never share a key
    pairs = sum(attended_pairs(length, window) for length in sequences)
    return 4 * config.num_attention_heads * config.head_dim * pairs


def attended_pairs(length: int, window: int | None) -> int:
    """Counts pairs of query and key of a causal sequence; a query sees itself."""
    seen = length if window is None else min(window, length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def _learning_all(config: InfiniteVLTextConfig, weights: Weights, work: Work) -> int:
    """Counts all layers, with the gradient through all of them."""
    total = 0
    for kind, frozen, trained in zip(config.layer_types, weights.frozen, weights.trained, strict=True):
        matrices = WITH_INPUT_GRADIENT * frozen + WITH_ALL_GRADIENTS * trained
        total += matrices * work.tokens + (1 + _BACKWARD) * mixer_flops(config, kind, work.sequences)
    return total


def _learning_layers(config: InfiniteVLTextConfig, weights: Weights, work: Work) -> int:
    """Counts layers that train each alone: projections that read the layer's input need no gradient of it."""
    output = config.num_linear_heads * config.linear_value_dim * config.hidden_size
    total = 0
    for kind, frozen, trained in zip(config.layer_types, weights.frozen, weights.trained, strict=True):
        if trained:
            entering = trained - output
            matrices = WITH_INPUT_GRADIENT * (frozen + entering) + WITH_ALL_GRADIENTS * output
            total += matrices * work.tokens + (1 + _BACKWARD) * mixer_flops(config, kind, work.sequences)
    return total


def _forward(config: InfiniteVLTextConfig, work: Work) -> int:
    """Counts the forward pass of a decoder of attention layers."""
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    matrices = config.hidden_size * (2 * query + 2 * key + 3 * config.intermediate_size)
    mixers = sum(mixer_flops(config, kind, work.sequences) for kind in config.layer_types)
    return FORWARD * matrices * len(config.layer_types) * work.tokens + mixers


def nominal_peak(device_name: str) -> float | None:
    """Returns dense bfloat16 operations a second of a GPU, by its name; None if unknown."""
    return next((peak for name, peak in _PEAKS.items() if name in device_name), None)
