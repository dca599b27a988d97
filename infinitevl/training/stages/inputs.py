"""Embeds a batch for the losses of all stages: everything before the first layer is frozen in each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infinitevl.model.context import ForwardContext
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import IMAGE, VIDEO, token_kinds
from infinitevl.model.window_attention import WindowAttention
from infinitevl.training.flops import Work
from infinitevl.training.losses import supervised

Batch = dict[str, Any]
_MEDIA = ((IMAGE, "pixel_values", "image_grid_thw"), (VIDEO, "pixel_values_videos", "video_grid_thw"))


@dataclass(frozen=True)
class DecoderInput:
    """The input of the first layer; the same for teacher and student.

    embeds: [B, T, C]. position_ids: int64 [3, B, T]. packed: sequences that share the row, or None.
    """

    embeds: Tensor
    position_ids: Tensor
    packed: Any

    def through(self, model: InfiniteVLForConditionalGeneration) -> Tensor:
        """Runs the whole decoder with its last norm: [B, T, C]."""
        return model.model.language_model(self.embeds, self.position_ids, **_packed(self.packed))

    def layers(self, model: InfiniteVLForConditionalGeneration) -> Iterator["Layer"]:
        """Yields the decoder's layers as functions of the hidden states alone."""
        decoder = model.model.language_model
        cos, sin = decoder.rotary(self.position_ids)
        for layer in decoder.layers:
            yield Layer(layer, cos, sin, self.packed)


@dataclass(frozen=True)
class Layer:
    """A decoder layer with its angles and packing."""

    module: nn.Module
    cos: Tensor
    sin: Tensor
    packed: Any

    def __call__(self, x: Tensor) -> Tensor:
        """Runs the layer: [B, T, C] -> [B, T, C]."""
        return self.module(x, ForwardContext(self.cos, self.sin, packed=self.packed))

    def sees(self, length: int) -> tuple[int, int] | None:
        """Returns how many first and how many last tokens attention sees in sequences of `length`.

        (0, length) where it sees all; None for a Gated DeltaNet.
        """
        mixer = self.module.self_attn
        if not isinstance(mixer, WindowAttention):
            return None
        if mixer.window is None or length <= mixer.window + mixer.num_sinks:
            return 0, length
        return mixer.num_sinks, mixer.window

    @property
    def trains(self) -> bool:
        """Whether any of its weights receives a gradient."""
        return any(parameter.requires_grad for parameter in self.module.parameters())


@torch.no_grad()
def embed_batch(model: InfiniteVLForConditionalGeneration, batch: Batch) -> DecoderInput:
    """Embeds tokens and pictures of a batch as `training.data` packs it.

    With "shown_images", int64 [F], pictures of one size are read once each, and frame number f shows picture
    `shown_images[f]`.
    """
    ids = batch["input_ids"]
    inner = model.model
    embeds, kinds = inner.embed(ids), token_kinds(ids, model.config)
    for kind, pixels, grids in _MEDIA:
        if pixels in batch and kind == IMAGE and "shown_images" in batch:
            embeds = _place_shown(model, embeds, kinds == IMAGE, batch)
        elif pixels in batch:
            embeds = inner.place_features(embeds, kinds, kind, batch[pixels], batch[grids])
    lengths = batch.get("sequence_lengths")
    packed = None if lengths is None else inner.language_model.pack(lengths)
    return DecoderInput(embeds, batch["position_ids"], packed)


def _place_shown(
    model: InfiniteVLForConditionalGeneration, embeds: Tensor, places: Tensor, batch: Batch
) -> Tensor:
    """Places the features of each picture wherever it is shown; places: bool [B, T] -> [B, T, C]."""
    grids = batch["image_grid_thw"]
    features = model.model.visual(batch["pixel_values"], grids).to(embeds).unflatten(0, (len(grids), -1))
    return embeds.masked_scatter(places[..., None], features[batch["shown_images"]])


def real_tokens(batch: Batch) -> Tensor:
    """Marks the tokens that are no padding: bool [B, T]."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def answers(batch: Batch) -> tuple[Tensor, Tensor]:
    """Marks the tokens before one with a label, bool [B, T], and returns those labels, int64 [N]."""
    asked = supervised(batch["labels"])
    return asked, batch["labels"][:, 1:][asked[:, :-1]]


def picked(hidden: Tensor, places: Tensor) -> Tensor:
    """Selects tokens [N, C] of [B, T, C] by their flat numbers, int64 [N]."""
    return hidden.flatten(0, 1).index_select(0, places)


def longest(batch: Batch) -> int:
    """Returns the length of the longest sequence of a batch."""
    lengths = batch.get("sequence_lengths")
    return batch["input_ids"].shape[1] if lengths is None else max(lengths)


def work(batch: Batch, num_answers: int) -> Work:
    """Returns the size of a batch, padding included, with logits of `num_answers` tokens."""
    ids = batch["input_ids"]
    lengths = batch.get("sequence_lengths") or [ids.shape[1]] * len(ids)
    grids = [(t, h, w) for _, _, name in _MEDIA for t, h, w in _listed(batch.get(name))]
    return Work(tuple(lengths), tuple(grids), num_answers)


def _listed(grids: Any) -> list[list[int]]:
    return [] if grids is None else torch.as_tensor(grids).tolist()


def _packed(packed: Any) -> dict[str, Any]:
    return {} if packed is None else {"packed": packed}
