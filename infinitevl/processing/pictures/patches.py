"""Cuts frames into the patches that the vision encoder takes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from infinitevl.errors import InputError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def frame_patches(
    frames: Tensor,
    patch_size: int = 14,
    merge_size: int = 2,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Cuts pictures into patches, each doubled in time: uint8 [n, 3, H, W] -> float32 [n * h * w, 1176].

    Runs on the frames' device without synchronisation. h, w: rows and columns of patches; the merge_size ** 2
    patches that become one token are neighbours in the result.
    """
    pixels = _normalize(frames[:, None], mean, std)
    return _lay_out(pixels.expand(-1, 2, -1, -1, -1), patch_size, merge_size)


def clip_patches(
    clips: Tensor,
    patch_size: int = 14,
    merge_size: int = 2,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Cuts clips of S frames into patches: [n, S, 3, H, W], 0 to 255 -> float32 [n * h * w, 3 * S * p * p].

    S is the temporal patch size, p the patch size. Raises InputError unless H and W are multiples of
    patch_size * merge_size.
    """
    return _lay_out(_normalize(clips, mean, std), patch_size, merge_size)


def _normalize(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Computes (value / 255 - mean) / std in float32; Python numbers need no copy to the device."""
    if clips.ndim != 5 or clips.shape[2] != 3:
        raise InputError(f"Frames have shape {list(clips.shape)}; each must be [3, height, width].")
    pixels = clips.to(torch.float32, copy=True)
    for channel in range(3):
        pixels[:, :, channel].mul_(1 / (255 * std[channel])).sub_(mean[channel] / std[channel])
    return pixels


def _lay_out(pixels: Tensor, patch_size: int, merge_size: int) -> Tensor:
    count, steps, channels, height, width = pixels.shape
    block = patch_size * merge_size
    if height % block or width % block:
        raise InputError(f"Frames of {width}x{height} have no whole patches: give multiples of {block}.")
    rows, columns = height // block, width // block
    # [n, S, C, row, m, p, column, m, p] -> [n, row, column, m, m, C, S, p, p]
    pixels = pixels.reshape(
        count, steps, channels, rows, merge_size, patch_size, columns, merge_size, patch_size
    )
    pixels = pixels.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return pixels.reshape(count * rows * columns * merge_size**2, channels * steps * patch_size**2)
