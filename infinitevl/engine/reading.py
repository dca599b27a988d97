"""Prompts and questions that are read piece by piece: frames and answers of others go on in between."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infinitevl.engine.device import on_device
from infinitevl.engine.slots import Slot
from infinitevl.model.positions import IMAGE, VIDEO, prompt_positions, token_kinds

if TYPE_CHECKING:
    from infinitevl.engine.engine import Engine

_NAMES = ((IMAGE, "pixel_values", "image_grid_thw"), (VIDEO, "pixel_values_videos", "video_grid_thw"))


class PromptReader:
    """Reads into a slot what `Engine.read_prompt` reads at once.

    Args:
        slot: nobody else may read into it meanwhile.
        inputs: what the processor returned for one conversation.
        piece: tokens that are read in one step.

    Raises:
        StateError: full-attention layers have no room for it.
    """

    def __init__(self, engine: "Engine", slot: Slot, inputs: Mapping[str, Tensor], piece: int):
        self.engine, self.slot, self._inputs, self._piece = engine, slot, inputs, piece
        self.num_tokens = inputs["input_ids"].shape[1]
        slot.state.check_room(self.num_tokens)
        self._pictures = deque(_pictures(inputs))
        self._features: dict[int, list[Tensor]] = {IMAGE: [], VIDEO: []}
        self._embeds: Tensor | None = None
        self._num_read = 0

    @property
    def piece(self) -> int:
        """Tokens that the next step reads, or as many as take about as long."""
        return self._piece if self._pictures else min(self._piece, self.num_tokens - self._num_read)

    @on_device
    def step(self) -> Tensor | None:
        """Encode one picture, or read one piece: the last hidden state [1, C] once all was read, else None.

        What is returned stands until somebody else reads.
        """
        with self.engine.lock, self.engine.runner.main_lane():
            if self._pictures:
                self._encode(*self._pictures.popleft())
                return None
            if self._embeds is None:
                self._place()
            return self._read()

    def _encode(self, kind: int, pixels: Tensor, grid: tuple[int, int, int]) -> None:
        model = self.engine.model
        features = model.model.visual(pixels.to(model.device), [grid])
        self._features[kind].append(features)

    def _place(self) -> None:
        """Embed the text, put features where their pads are, and work out all positions."""
        model, ids = self.engine.model, self._inputs["input_ids"]
        kinds = token_kinds(ids, model.config)
        embeds = model.model.embed(ids.to(model.device))
        for kind, features in self._features.items():
            if features:
                places = (kinds == kind)[..., None].to(embeds.device)
                embeds = embeds.masked_scatter(places, torch.cat(features).to(embeds))
        images, videos = (self._inputs.get(grid) for _, _, grid in _NAMES)
        seconds, start = self._inputs.get("second_per_grid_ts"), torch.zeros(len(kinds), dtype=torch.int64)
        offsets = prompt_positions(kinds, start, model.config, images, videos, seconds)[0]
        begin = self.slot.state.next_position
        self._embeds, self._positions = embeds, offsets.to(begin.device) + begin

    def _read(self) -> Tensor | None:
        assert self._embeds is not None
        piece = slice(self._num_read, self._num_read + self._piece)
        embeds = self._embeds[:, piece]
        offsets = self._positions[..., piece] - self.slot.state.next_position
        hidden = self.engine.runner.read_embeds(self.slot, embeds, offsets)
        self.slot.facts = self.slot.facts.with_text(embeds.shape[1])
        self._num_read += embeds.shape[1]
        return hidden if self._num_read == self.num_tokens else None


class TurnReader:
    """Reads into a fork of a stream what `Engine.read_turn` reads at once.

    Args:
        slot: the fork; nobody else may read into it meanwhile.
        turn_ids: of the turn, one token at least.
        piece: tokens that are read in one step.
    """

    def __init__(self, engine: "Engine", slot: Slot, turn_ids: list[int], piece: int):
        self.engine, self.slot, self._ids, self._piece = engine, slot, turn_ids, piece
        self._num_read = 0

    @property
    def piece(self) -> int:
        """Tokens that the next step reads."""
        return min(self._piece, len(self._ids) - self._num_read)

    def step(self) -> Tensor | None:
        """Read one piece: the last hidden state [1, C] once all was read, else None."""
        ids = self._ids[self._num_read : self._num_read + self._piece]
        read = self.engine.read if self._num_read else self.engine.read_turn  # which closes the span first
        hidden = read(self.slot, ids)
        self._num_read += len(ids)
        return hidden if self._num_read == len(self._ids) else None


def _pictures(inputs: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor, tuple[int, int, int]]]:
    """Kind, patches and grid of each picture, and of each temporal patch of a video: none sees another."""
    for kind, pixels, grids in _NAMES:
        start = 0
        for time, height, width in inputs[grids].tolist() if grids in inputs else ():
            for _ in range(time):
                yield kind, inputs[pixels][start : start + height * width], (1, height, width)
                start += height * width
