"""Positions on three axes (time, height, width): one rule for chat and streams.

Text advances all axes by one. A picture or video whose first token would stand at p has time
p + floor(seconds x tokens_per_second), height p + row, width p + column. What follows starts at 1 + the
largest position on any axis.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import InputError

PADDING, TEXT, IMAGE, VIDEO = -1, 0, 1, 2
MICROSECONDS = 1_000_000


def to_microseconds(seconds: float) -> int:
    """Whole microseconds: sums and differences of times stay exact."""
    return round(seconds * MICROSECONDS)


def frame_positions(
    start: Tensor, elapsed: Tensor, rows: int, columns: int, tokens_per_second: int
) -> Tensor:
    """Positions of one frame's tokens.

    Args:
        start: int64 [B], p of the span. elapsed: int64 [B], microseconds since the span's first frame.
        rows, columns: of merged tokens.

    Returns:
        int64 [3, B, rows * columns].
    """
    time = start + elapsed * tokens_per_second // MICROSECONDS
    row = torch.arange(rows, device=start.device).repeat_interleave(columns)
    column = torch.arange(columns, device=start.device).repeat(rows)
    height, width = start[:, None] + row, start[:, None] + column
    return torch.stack([time[:, None].expand_as(height), height, width])


def text_positions(start: Tensor, num_tokens: int) -> Tensor:
    """Positions of plain text that starts at `start` (int64 [B]): int64 [3, B, T]."""
    return (start[:, None] + torch.arange(num_tokens, device=start.device)).expand(3, -1, -1)


def token_kinds(input_ids: Tensor, config: InfiniteVLConfig) -> Tensor:
    """TEXT, IMAGE or VIDEO for each token, int64 of the same shape."""
    return (input_ids == config.image_token_id) * IMAGE + (input_ids == config.video_token_id) * VIDEO


def prompt_positions(
    kinds: Tensor,
    start: Tensor,
    config: InfiniteVLConfig,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Iterable[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Positions of a batch of prompts that may hold pictures and videos.

    Args:
        kinds: [B, T] of `token_kinds`, PADDING where a token does not count.
        start: int64 [B], the position of each row's first token.
        image_grid_thw, video_grid_thw: [items, 3] in the order in which they appear, row after row.
        second_per_grid_ts: seconds per temporal patch of each video; 1 by default.

    Returns:
        position_ids int64 [3, B, T] (0 at padding), and rope_deltas int64 [B, 1]: 1 + the largest position
        minus the tokens that count and the start.

    Raises:
        InputError: the grids do not fit the picture and video tokens, or the times the videos.
    """
    device = start.device
    items = _Items(config, image_grid_thw, video_grid_thw, second_per_grid_ts)
    positions = torch.zeros(3, *kinds.shape, dtype=torch.int64)
    ends = []
    for row, (row_kinds, begin) in enumerate(zip(kinds.tolist(), start.tolist(), strict=True)):
        counted = [kind for kind in row_kinds if kind != PADDING]
        parts, end = _row_positions(counted, begin, items)
        index = torch.tensor([i for i, kind in enumerate(row_kinds) if kind != PADDING], dtype=torch.int64)
        positions[:, row, index] = parts
        ends.append(end - begin - len(counted))
    items.check_all_used()
    return positions.to(device), torch.tensor(ends, device=device)[:, None]


def _row_positions(kinds: list[int], begin: int, items: "_Items") -> tuple[Tensor, int]:
    """Positions [3, tokens] of one row, and 1 + the largest."""
    parts, here = [torch.zeros(3, 0, dtype=torch.int64)], begin
    for kind, run in itertools.groupby(kinds):
        left = len(list(run))
        while left:
            part = (
                items.next_positions(kind, here) if kind else text_positions(torch.tensor([here]), left)[:, 0]
            )
            if part.shape[1] > left:
                raise InputError(
                    f"a picture or video needs {part.shape[1]} tokens but the prompt has {left} there. "
                    "Make text and pictures with the same processor call."
                )
            left -= part.shape[1]
            parts.append(part)
            here = int(part.max()) + 1
    return torch.cat(parts, dim=1), here


class _Items:
    """The pictures and videos of a batch, in order."""

    def __init__(
        self,
        config: InfiniteVLConfig,
        image_grid_thw: Tensor | None,
        video_grid_thw: Tensor | None,
        second_per_grid_ts: Iterable[float] | None,
    ):
        self.merge = config.vision_config.spatial_merge_size
        self.tokens_per_second = config.vision_config.tokens_per_second
        images = [] if image_grid_thw is None else image_grid_thw.tolist()
        videos = [] if video_grid_thw is None else video_grid_thw.tolist()
        self.grids: dict[int, Iterator[list[int]]] = {IMAGE: iter(images), VIDEO: iter(videos)}
        self.seconds = iter(_checked_seconds(second_per_grid_ts, len(videos)))

    def next_positions(self, kind: int, here: int) -> Tensor:
        """Positions [3, tokens] of the next picture or video, which starts at `here`."""
        grid = next(self.grids[kind], None)
        if grid is None:
            name = "image" if kind == IMAGE else "video"
            raise InputError(
                f"the prompt has more {name}s than {name}_grid_thw. Pass what the processor returned, whole."
            )
        time, rows, columns = grid[0], grid[1] // self.merge, grid[2] // self.merge
        seconds = next(self.seconds) if kind == VIDEO else 0.0
        start = torch.tensor([here])
        return torch.cat(
            [
                frame_positions(
                    start,
                    torch.tensor([to_microseconds(patch * seconds)]),
                    rows,
                    columns,
                    self.tokens_per_second,
                )[:, 0]
                for patch in range(time)
            ],
            dim=1,
        )

    def check_all_used(self) -> None:
        """Every picture and video must have had its place in the prompt."""
        for kind, name in ((IMAGE, "image"), (VIDEO, "video")):
            left = len(list(self.grids[kind]))
            if left:
                raise InputError(
                    f"{left} {name}(s) of {name}_grid_thw have no place in the prompt. "
                    f"Give the prompt one {name} token run for each."
                )


def _checked_seconds(second_per_grid_ts: Iterable[float] | None, num_videos: int) -> list[float]:
    """Seconds per temporal patch of each video."""
    if second_per_grid_ts is None:
        return [1.0] * num_videos
    seconds = [float(given) for given in second_per_grid_ts]
    if len(seconds) != num_videos:
        raise InputError(
            f"second_per_grid_ts has {len(seconds)} times for {num_videos} videos. Give one for each video "
            "of video_grid_thw, or leave it out: 1 second then."
        )
    if not all(math.isfinite(given) and given >= 0 for given in seconds):
        raise InputError(
            f"second_per_grid_ts is {seconds}; seconds from one temporal patch to the next must be finite "
            "and not negative."
        )
    return seconds
