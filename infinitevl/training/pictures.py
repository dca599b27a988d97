"""Turns patches back into pictures, so that people can look at what a model is given."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from infinitevl.config import InfiniteVLVisionConfig
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.training.stages.inputs import Batch

_MEDIA = (("image", "pixel_values"), ("video", "pixel_values_videos"))


def write_pictures(
    batch: Batch, folder: Path, config: InfiniteVLVisionConfig, processor: InfiniteVLProcessor
) -> list[Path]:
    """Writes every picture of a batch, and the first frame of each temporal patch of its videos, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, key in _MEDIA:
        if key not in batch:
            continue
        grids = batch[f"{kind}_grid_thw"].tolist()
        items = batch[key].split([time * height * width for time, height, width in grids])
        for number, (patches, grid) in enumerate(zip(items, grids, strict=True), 1):
            for index, frame in enumerate(unpatch(patches, grid, config), 1):
                name = f"{kind}-{number}.png" if kind == "image" else f"{kind}-{number}-{index}.png"
                _as_picture(frame, processor).save(folder / name)
                written.append(folder / name)
    return written


def unpatch(patches: Tensor, grid: list[int], config: InfiniteVLVisionConfig) -> Tensor:
    """Joins patches [N, channels x 2 x 14 x 14], in order of merge blocks, to [time, channels, H, W]."""
    time, height, width = grid
    merge, side = config.spatial_merge_size, config.patch_size
    blocks = patches.view(
        *(time, height // merge, width // merge, merge, merge),
        *(config.in_channels, config.temporal_patch_size, side, side),
    )
    first = blocks[..., 0, :, :]  # [time, row, column, row, column, channel, y, x] without the second frame
    return first.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(
        time, config.in_channels, height * side, width * side
    )


def _as_picture(frame: Tensor, processor: InfiniteVLProcessor) -> Image.Image:
    given = processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (given.image_mean, given.image_std))
    values = (frame.float().cpu() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(values.round().to(torch.uint8).permute(1, 2, 0).numpy())
