"""Qwen2.5-VL's vision encoder and projector, without a look at the host while it runs.

Where patches and windows lie follows from the grids alone, so it is worked out beforehand (`vision_plan`) and
a stream of equal frames works it out once.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from infinitevl.config import InfiniteVLVisionConfig
from infinitevl.errors import InputError
from infinitevl.model.fused import Fusable
from infinitevl.model.layers import GatedMLP, RMSNorm
from infinitevl.ops.attention.vision import Segments

Grid = tuple[int, int, int]
_NUM_FULL_BLOCKS = 3  # layers whose weights no quantization touches


@dataclass(frozen=True)
class VisionPlan:
    """Where everything lies for given grids; N patches, N / 4 merged tokens."""

    order: Tensor  # int64 [N / 4], merged tokens window by window
    inverse: Tensor  # int64 [N / 4], back to reading order
    cos: Tensor  # float32 [N, D], in window order
    sin: Tensor
    windows: tuple[Segments, ...]
    frames: tuple[Segments, ...]


@functools.lru_cache(maxsize=32)
@torch.inference_mode(
    False
)  # the cache outlives the caller's mode, and training cannot use inference tensors
def vision_plan(grids: tuple[Grid, ...], config: "VisionSizes", device: torch.device) -> VisionPlan:
    """The plan for pictures and videos of `grids` (temporal patches, rows, columns of patches)."""
    order, window_lengths, frame_lengths, places, offset = [], [], [], [], 0
    for time, height, width in grids:
        rows, columns = height // config.merge, width // config.merge
        for frame in range(time):
            for window in _windows(rows, columns, config.window):
                order.append(window + offset + frame * rows * columns)
                window_lengths.append(window.numel() * config.merge**2)
        frame_lengths += [height * width] * time
        places.append(_places(height, width, config.merge).repeat(time, 1))
        offset += time * rows * columns
    perm = torch.cat(order)
    cos, sin = _angles(torch.cat(places), config.head_dim)
    cos, sin = (x.unflatten(0, (-1, config.merge**2))[perm].flatten(0, 1).to(device) for x in (cos, sin))
    return VisionPlan(
        perm.to(device),
        perm.argsort().to(device),
        cos,
        sin,
        _segments(window_lengths, device),
        _segments(frame_lengths, device),
    )


@dataclass(frozen=True)
class VisionSizes:
    """What a plan depends on besides the grids: merged tokens a side, and the head width of the angles."""

    merge: int
    window: int
    head_dim: int


def _windows(rows: int, columns: int, side: int) -> list[Tensor]:
    """Merged tokens of each window of a frame, row by row of windows."""
    tokens = torch.arange(rows * columns).view(rows, columns)
    return [window.flatten() for band in tokens.split(side) for window in band.split(side, dim=1)]


def _places(height: int, width: int, merge: int) -> Tensor:
    """Row and column of each patch of a frame, patches ordered by merge block: [height * width, 2]."""
    rows = torch.arange(height)[:, None].expand(-1, width)
    columns = torch.arange(width)[None].expand(height, -1)
    blocks = torch.stack([rows, columns], dim=-1).view(height // merge, merge, width // merge, merge, 2)
    return blocks.transpose(1, 2).reshape(-1, 2)


def _angles(places: Tensor, head_dim: int, theta: float = 1e4) -> tuple[Tensor, Tensor]:
    """Two-dimensional rotary angles: half of the frequencies turn with the row, half with the column."""
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)))
    angles = (places[..., None] * frequencies).flatten(1)  # [N, D / 2]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _segments(lengths: list[int], device: torch.device) -> tuple[Segments, ...]:
    """Runs of the given lengths, side by side, grouped by length."""
    if len(set(lengths)) == 1:
        return (Segments(lengths[0], None),)
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    sizes = torch.tensor(lengths)
    return tuple(
        Segments(size, (starts[sizes == size][:, None] + torch.arange(size)).flatten().to(device))
        for size in sorted(set(lengths))
    )


class VisionAttention(Fusable):
    """Attention within runs of patches.

    Args:
        quantizations: in which its weights may be held.
    """

    quantizable = ("qkv", "proj")

    def __init__(self, config: InfiniteVLVisionConfig, quantizations: tuple[str, ...] = ()):
        super().__init__()
        self.quantizations = quantizations
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, segments: Sequence[Segments], *, norm: RMSNorm
    ) -> Tensor:
        """x + attended norm(x), [N, C]."""
        fast = self._fast()
        if fast is None:
            qkv = self.qkv(norm(x)).unflatten(-1, (3, self.num_heads, -1))
            return x + self.proj(self.kernels.vision_attention(qkv, cos, sin, segments).flatten(1))
        kernels, bias = fast.kernels, (self.qkv.bias, self.proj.bias)
        # What proj adds to the residual besides the product is added where the residual is read anyway.
        together, x = kernels.norm_linear_shift(x, norm.weight, norm.eps, fast["qkv"], *bias)
        qkv = together.unflatten(-1, (3, self.num_heads, -1))
        out = kernels.vision_attention(qkv, cos, sin, segments).flatten(1)
        return kernels.linear_add(out, fast["proj"], x)

    def _lay_out(self) -> dict[str, Any]:
        return {"qkv": self.qkv.weight.data, "proj": self.proj.weight.data}


class VisionBlock(GradientCheckpointingLayer):
    """Attention and feed-forward of one vision layer.

    Args:
        index: of the layer. The first ones see pixels and stay in full precision.
    """

    def __init__(self, config: InfiniteVLVisionConfig, index: int):
        super().__init__()
        quantizations = () if index < _NUM_FULL_BLOCKS else ("fp8",)
        self.norm1 = RMSNorm(config.hidden_size, 1e-6)
        self.norm2 = RMSNorm(config.hidden_size, 1e-6)
        self.attn = VisionAttention(config, quantizations)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, True, quantizations)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Sequence[Segments]) -> Tensor:
        """[N, C] -> [N, C]."""
        x = self.attn(x, cos, sin, segments, norm=self.norm1)
        return self.mlp(x, norm=self.norm2)


class PatchProjection(nn.Conv3d):
    """A convolution whose windows are the patches: one product, with the weight in its published shape."""

    def forward(self, patches: Tensor) -> Tensor:
        """[N, channels x time x height x width] -> [N, C]."""
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1))


class PatchEmbed(nn.Module):
    """Patches to the encoder's width."""

    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        size = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = PatchProjection(config.in_channels, config.hidden_size, size, stride=size, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """[N, channels x time x height x width] -> [N, C]."""
        return self.proj(patches)


class Projector(nn.Module):
    """From merge blocks of patches to tokens of the decoder."""

    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        width = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.out_hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> [N / 4, decoder width]."""
        return self.mlp(self.ln_q(x).view(-1, self.mlp[0].in_features))


def _check_patches(shape: tuple[int, ...], grids: tuple[Grid, ...], config: InfiniteVLVisionConfig) -> None:
    """See that patches of `shape` fill `grids`."""
    merge = config.spatial_merge_size
    for time, height, width in grids:
        if min(time, height, width) < 1 or height % merge or width % merge:
            raise InputError(
                f"a grid is {time} x {height} x {width} patches (time, height, width); height and width must "
                f"be multiples of {merge}, and none may be 0. Make pictures with the processor."
            )
    wanted = (sum(math.prod(grid) for grid in grids), config.patch_dim)
    if shape != wanted:
        raise InputError(
            f"the pixels have shape {shape}, the grids {list(grids)} need {wanted}. Pass pixels and grids of "
            "the same processor call, whole."
        )


class VisionEncoder(nn.Module):
    """Patches of pictures and videos to tokens of the decoder."""

    def __init__(self, config: InfiniteVLVisionConfig):
        super().__init__()
        self.config = config
        self.sizes = VisionSizes(
            config.spatial_merge_size, config.window_size // config.merge_factor, config.head_dim
        )
        self.full_blocks = frozenset(config.fullatt_block_indexes)
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config, index) for index in range(config.depth))
        self.merger = Projector(config)

    def forward(self, pixel_values: Tensor, grid_thw: Tensor | Sequence[Grid]) -> Tensor:
        """Encode patches.

        Args:
            pixel_values: [N, channels x 2 x 14 x 14], normalised, ordered by merge block, item after item.
            grid_thw: per item its temporal patches, rows and columns of patches.

        Returns:
            [N / 4, decoder width], item after item in reading order.

        Raises:
            InputError: the patches do not fit the grids.
        """
        listed = grid_thw.tolist() if isinstance(grid_thw, Tensor) else grid_thw
        grids = tuple((t, h, w) for t, h, w in listed)
        _check_patches(tuple(pixel_values.shape), grids, self.config)
        plan = vision_plan(grids, self.sizes, pixel_values.device)
        return self.encode(pixel_values, plan)

    def encode(self, pixel_values: Tensor, plan: VisionPlan) -> Tensor:
        """The same with the plan given: nothing here waits for the host."""
        x = self.patch_embed(pixel_values).unflatten(0, (-1, self.sizes.merge**2))
        x = x[plan.order].flatten(0, 1)
        for index, block in enumerate(self.blocks):
            segments = plan.frames if index in self.full_blocks else plan.windows
            x = block(x, plan.cos, plan.sin, segments)
        return self.merger(x)[plan.inverse]
