"""What an engine does on the device, as functions of tensors: run as they are, or captured and replayed."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from infinitevl.engine.answers import Answers
from infinitevl.model.fused import Kernels
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import frame_positions, text_positions
from infinitevl.model.vision import VisionPlan, vision_plan
from infinitevl.processing.images import clip_patches
from infinitevl.state import StreamState

F = TypeVar("F", bound=Callable[..., Any])


def without_gradients(function: F) -> F:
    """Decorate a function that records no gradients and leaves its caller's inference mode.

    Tensors made in inference mode cannot be changed outside of it, and an engine outlives each call.
    """
    return torch.inference_mode(False)(torch.no_grad()(function))


class Steps:
    """The steps of one model on frames of one size.

    In all of them `state` holds N streams and `rows` (int64 [B]) says which ones go on; None means all.

    Args:
        look: the image processor's mean and standard deviation. frame_size: height, width in pixels.
        kernels: what a model whose weights are laid out runs on; None for any other model.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        look: Any,
        frame_size: tuple[int, int],
        kernels: Kernels | None = None,
    ):
        self.model, self.look, self.kernels = model, look, kernels
        vision = model.config.vision_config
        self.grid = (frame_size[0] // vision.merge_factor, frame_size[1] // vision.merge_factor)

    @property
    def num_tokens(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]

    def plan(self, count: int, device: torch.device) -> VisionPlan:
        """Where everything lies in `count` pictures: who captures `see` keeps it as long as the capture."""
        return vision_plan((self._patch_grid,) * count, self.model.model.visual.sizes, device)

    def see(self, clips: Tensor, plan: VisionPlan | None = None) -> Tensor:
        """Pictures, uint8 [S, 1 or 2, 3, H, W] -> what the decoder reads of them, [S, tokens, C].

        One picture stands for both of a temporal patch. plan: of these S pictures; None finds it.
        """
        vision = self.model.config.vision_config
        mean, std = self.look.image_mean, self.look.image_std
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

    def take_in(self, state: StreamState, rows: Tensor | None, features: Tensor, times: Tensor) -> None:
        """Read the tokens [S, tokens, C] of frames seen at `times` (int64 [S], microseconds)."""
        span = state.span
        start, since = (x if rows is None else x[rows] for x in (span.start, span.start_time))
        speed = self.model.config.vision_config.tokens_per_second
        positions = frame_positions(start, times - since, *self.grid, speed)
        self.model.model.language_model(features, positions, state, rows=rows)

    def read(
        self, state: StreamState, rows: Tensor | None, token_ids: Tensor, num_valid: Tensor | None
    ) -> Tensor:
        """Read text [B, T], of each row num_valid (int64 [B]) tokens: last hidden state [B, C]."""
        decoder = self.model.model.language_model
        start = state.next_position if rows is None else state.next_position[rows]
        positions = text_positions(start, token_ids.shape[1])
        out = decoder(self.model.model.embed(token_ids), positions, state, num_valid, rows=rows)
        if num_valid is None:
            return out[:, -1]
        return out.gather(1, (num_valid - 1)[:, None, None].expand(-1, 1, out.shape[-1]))[:, 0]

    def first(self, answers: Answers, answer_rows: Tensor, hidden: Tensor, is_greedy: bool) -> None:
        """Pick the first token of answers whose questions end in `hidden` [B, C]."""
        answers.take_(answer_rows, self._logits(hidden), is_greedy)

    def token(
        self,
        state: StreamState,
        rows: Tensor | None,
        answers: Answers,
        answer_rows: Tensor,
        is_greedy: bool,
    ) -> None:
        """Read the token that each answer picked last, and pick the next one."""
        token = answers.token[answer_rows]
        start = state.next_position if rows is None else state.next_position[rows]
        embeds = self.model.model.embed(token.to(start.device)[:, None])
        decoder = self.model.model.language_model
        out = decoder(embeds, text_positions(start, 1), state, one_token=True, rows=rows)
        answers.take_(answer_rows, self._logits(out[:, -1]), is_greedy)

    def _logits(self, hidden: Tensor) -> Tensor:
        """[B, C] -> [B, vocabulary]."""
        if self.kernels is None:
            return self.model.lm_head(hidden)
        return self.kernels.linear(hidden, self.model.lm_head.weight)
