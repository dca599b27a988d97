"""The steps of an engine: functions of tensors, which runners call or capture as CUDA graphs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infinitevl.engine.answers import AnswerRows, Pick
from infinitevl.engine.slots import put, write_facts
from infinitevl.model.fused import Kernels
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import (
    IMAGE,
    VIDEO,
    frame_positions,
    prompt_positions,
    text_positions,
    token_kinds,
)
from infinitevl.model.vision import VisionPlan, vision_plan
from infinitevl.processing.pictures.patches import clip_patches
from infinitevl.state import StreamState


class Steps:
    """The steps of one model on frames of one size.

    In all of them `state` holds N streams, and `rows` (int64 [B]) those that the step changes; None: all.

    Args:
        image_processor: has the mean and standard deviation of pixels. frame_size: height, width in pixels.
        kernels: those of a model with fused weights; None for any other model.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        image_processor: Any,
        frame_size: tuple[int, int],
        kernels: Kernels | None = None,
    ):
        self.model, self.image_processor, self.kernels = model, image_processor, kernels
        vision = model.config.vision_config
        self.grid = (frame_size[0] // vision.merge_factor, frame_size[1] // vision.merge_factor)

    @property
    def num_tokens(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]

    def plan(self, count: int, device: torch.device) -> VisionPlan:
        """Compute the layout of `count` pictures, which a captured `encode` reads from fixed tensors."""
        return vision_plan((self._patch_grid,) * count, self.model.model.visual.sizes, device)

    def encode(self, clips: Tensor, plan: VisionPlan | None = None) -> Tensor:
        """Encode clips, uint8 [S, 1 or 2, 3, H, W], to features [S, tokens, C].

        A single picture counts as both frames of a temporal patch. plan: of S pictures; None computes it.
        """
        vision = self.model.config.vision_config
        mean, std = self.image_processor.image_mean, self.image_processor.image_std
        merge = vision.spatial_merge_size
        clips = clips.expand(-1, vision.temporal_patch_size, -1, -1, -1)
        patches = clip_patches(clips, vision.patch_size, merge, mean, std).to(self.model.dtype)
        visual = self.model.model.visual
        if plan is None:
            features = visual(patches, [self._patch_grid] * len(clips))
        else:
            features = visual.encode(patches, plan)
        return features.unflatten(0, (len(clips), -1))

    @property
    def _patch_grid(self) -> tuple[int, int, int]:
        merge = self.model.config.vision_config.spatial_merge_size
        return 1, self.grid[0] * merge, self.grid[1] * merge

    def open_spans(self, state: StreamState, rows: Tensor | None, times: Tensor) -> None:
        """Open a span after the vision-start token that was read; its first frame is at `times`."""
        span = state.span
        put(span.start, rows, state.next_position if rows is None else state.next_position[rows])
        put(span.start_time, rows, times)

    def add_frames(
        self, state: StreamState, rows: Tensor | None, features: Tensor, times: Tensor, facts: Tensor
    ) -> None:
        """Read the tokens of frames seen at `times` (int64 [S, F], microseconds), F of each of S streams.

        features: [S F, tokens, C]. facts: of the slots afterwards (`Facts.row`), int64 [S, 4].
        """
        span, (num_streams, num_frames) = state.span, times.shape
        start, since = (x if rows is None else x[rows] for x in (span.start, span.start_time))
        elapsed = (times - since[:, None]).flatten()
        speed = self.model.config.vision_config.tokens_per_second
        positions = frame_positions(start.repeat_interleave(num_frames), elapsed, *self.grid, speed)
        in_a_row = features.view(num_streams, -1, features.shape[-1]), positions.view(3, num_streams, -1)
        self.model.model.language_model(*in_a_row, state, rows=rows)
        write_facts(span, rows, facts)

    def read(
        self, state: StreamState, rows: Tensor | None, token_ids: Tensor, num_valid: Tensor | None
    ) -> Tensor:
        """Read text [B, T], of each row its first num_valid (int64 [B]); return the last hidden [B, C]."""
        start = state.next_position if rows is None else state.next_position[rows]
        positions = text_positions(start, token_ids.shape[1])
        return self.read_embeds(state, rows, self.model.model.embed(token_ids), positions, num_valid)

    def read_embeds(
        self,
        state: StreamState,
        rows: Tensor | None,
        embeds: Tensor,
        positions: Tensor,
        num_valid: Tensor | None,
    ) -> Tensor:
        """Read embeddings [B, T, C] at positions [3, B, T]; return the last hidden state [B, C]."""
        out = self.model.model.language_model(embeds, positions, state, num_valid, rows=rows)
        if num_valid is None:
            return out[:, -1]
        return out.gather(1, (num_valid - 1)[:, None, None].expand(-1, 1, out.shape[-1]))[:, 0]

    def embed(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Embed a prompt with pictures and videos, as the processor returns it, for `read_embeds`.

        Returns:
            Embeddings [1, T, C] on the device, and positions relative to the prompt's start, int64 [3, 1, T].
        """
        model, config = self.model.model, self.model.config
        kinds = token_kinds(inputs["input_ids"], config)
        grids = {kind: inputs.get(f"{name}_grid_thw") for kind, name in ((IMAGE, "image"), (VIDEO, "video"))}
        embeds = model.embed(inputs["input_ids"].to(self.model.device))
        for kind, name in ((IMAGE, "pixel_values"), (VIDEO, "pixel_values_videos")):
            if inputs.get(name) is not None:
                places = kinds.to(embeds.device)
                embeds = model.place_features(embeds, places, kind, inputs[name], grids[kind])
        seconds, start = inputs.get("second_per_grid_ts"), torch.zeros(len(kinds), dtype=torch.int64)
        return embeds, prompt_positions(kinds, start, config, grids[IMAGE], grids[VIDEO], seconds)[0]

    def first(self, answers: AnswerRows, answer_rows: Tensor, hidden: Tensor, pick: Pick) -> None:
        """Pick the first token of answers whose questions end in `hidden` [B, C]."""
        answers.take_(answer_rows, self._logits(hidden), pick)

    def token(
        self,
        state: StreamState,
        rows: Tensor | None,
        answers: AnswerRows,
        answer_rows: Tensor,
        pick: Pick,
    ) -> None:
        """Read the token that each answer picked last, and pick the next one."""
        token = answers.token[answer_rows]
        start = state.next_position if rows is None else state.next_position[rows]
        embeds = self.model.model.embed(token.to(start.device)[:, None])
        decoder = self.model.model.language_model
        out = decoder(embeds, text_positions(start, 1), state, one_token=True, rows=rows)
        answers.take_(answer_rows, self._logits(out[:, -1]), pick)

    def _logits(self, hidden: Tensor) -> Tensor:
        """[B, C] -> [B, vocabulary]."""
        if self.kernels is None:
            return self.model.lm_head(hidden)
        return self.kernels.linear(hidden, self.model.lm_head.weight)
