"""Chooses the frames of a video that a chat shows: by number as qwen-vl-utils, or by time."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from infinitevl.errors import InputError
from infinitevl.processing.sources.frames import DEFAULT_FPS
from infinitevl.processing.sources.recording import Shown

FRAME_FACTOR = 2
MIN_FRAMES, MAX_FRAMES = 4, 768
_SAME = 1e-6  # seconds


@dataclass(frozen=True)
class Selection:
    """The chosen frames of a video: numbers, times in seconds, and frames a second (rate).

    num_shown: frames in the chosen part of the video. fps: frames a second of that part.
    """

    indices: list[int]
    times: list[float]
    rate: float
    num_shown: int
    fps: float


def select_frames(element: dict[str, Any], shown: Shown) -> Selection:
    """Chooses frames evenly between the start and end that an element of a message asks for.

    A video of a steady frame rate is sampled by frame number, any other by time.

    Raises InputError for a choice without frames, such as an end before the start.
    """
    times = np.array(shown.times)
    fps = _steady_rate(times, shown)
    if fps is not None:
        first, last = _frame_range(element, len(times), fps)
        count = smart_nframes(element, last - first + 1, fps)
        indices = np.linspace(first, last, count, dtype=np.float32).round().astype(int)
        return _selection(indices, times, last - first + 1, fps)
    start, end = _time_range(element, shown.duration)
    is_cut_off = end < shown.duration  # a frame at video_end belongs to the part
    first, last = _shown_at(times, np.array([start, end if is_cut_off else end - 2 * _SAME])).tolist()
    span = max(last - first + 1, min(FRAME_FACTOR, len(times)))
    fps = span / (end - start)
    count = smart_nframes(element, span, fps)
    wanted = np.linspace(start, end, count, endpoint=is_cut_off)
    return _selection(_shown_at(times, wanted), times, span, fps)


def _selection(indices: np.ndarray, times: np.ndarray, span: int, fps: float) -> Selection:
    return Selection(indices.tolist(), times[indices].tolist(), len(indices) / span * fps, span, fps)


def _shown_at(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the numbers of the frames that are on the screen at these times."""
    return np.maximum(np.searchsorted(times, wanted + _SAME, side="right") - 1, 0)


def _steady_rate(times: np.ndarray, shown: Shown) -> float | None:
    """Returns frames a second if every frame lies within half a frame of that grid; else None."""
    rates = [shown.fps]
    if len(times) > 1 and times[-1] > 0:
        rates.append((len(times) - 1) / float(times[-1]))
    for rate in rates:
        offset = np.abs(times * rate - np.arange(len(times))).max()
        if offset < 0.5 and shown.duration * rate < len(times) + 1:
            return rate
    return None


def _frame_range(element: dict[str, Any], total: int, video_fps: float) -> tuple[int, int]:
    """Returns the first and last frame between video_start and video_end, both included."""
    start, end = element.get("video_start"), element.get("video_end")
    duration = total / video_fps
    first = 0 if start is None else math.ceil(min(max(start, 0.0), duration) * video_fps)
    last = total - 1 if end is None else math.floor(min(max(end, 0.0), duration) * video_fps)
    last = min(last, total - 1)
    if first >= last and (start is not None or end is not None):
        raise _empty_range(element, duration)
    return first, last


def _time_range(element: dict[str, Any], duration: float) -> tuple[float, float]:
    """Returns video_start and video_end in seconds, clipped to the video."""
    start, end = element.get("video_start"), element.get("video_end")
    first = 0.0 if start is None else min(max(start, 0.0), duration)
    last = duration if end is None else min(max(end, 0.0), duration)
    if first >= last:
        raise _empty_range(element, duration)
    return first, last


def _empty_range(element: dict[str, Any], duration: float) -> InputError:
    start, end = element.get("video_start"), element.get("video_end")
    return InputError(
        f"video_start {start} and video_end {end} leave no two frames of a video of {duration:.2f} s. "
        "Give seconds, the start before the end."
    )


def smart_nframes(element: dict[str, Any], total_frames: int, video_fps: float) -> int:
    """Returns how many frames to take, an even number: by nframes, or by fps, min_frames and max_frames."""
    if "fps" in element and "nframes" in element:
        raise InputError("A video takes fps or nframes, not both.")
    if "nframes" in element:
        count = round(element["nframes"] / FRAME_FACTOR) * FRAME_FACTOR
    else:
        least = _whole(math.ceil, element.get("min_frames", MIN_FRAMES))
        most = _whole(math.floor, element.get("max_frames", min(MAX_FRAMES, total_frames)))
        wanted = total_frames / video_fps * element.get("fps", DEFAULT_FPS)
        count = _whole(math.floor, min(max(wanted, least), most, total_frames))
    if not FRAME_FACTOR <= count <= total_frames:
        raise InputError(
            f"{count} frames were asked of a video of {total_frames}; valid are {FRAME_FACTOR} to "
            f"{total_frames}. Change nframes, or fps, min_frames, max_frames; show a single frame as image."
        )
    return count


def _whole(rounding: Any, count: float) -> int:
    return rounding(count / FRAME_FACTOR) * FRAME_FACTOR
