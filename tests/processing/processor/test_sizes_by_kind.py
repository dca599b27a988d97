"""Sizes for pictures, sizes for videos, and a limit on what a video takes in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from infinitevl.errors import InputError
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.processing.processor.vision_info import process_vision_info
from tests.processing.media import make_picture, write_video

TEXT = "<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>"
LIMIT = "infinitevl.processing.pictures.pixels.MAX_VIDEO_PIXELS"


def num_pixels(grid: torch.Tensor) -> int:
    return int(grid[0, 1] * grid[0, 2]) * 14**2


@pytest.mark.parametrize("group", ["images_kwargs", "videos_kwargs"])
@pytest.mark.parametrize("name", ["max_pixels", "size"])
def test_the_sizes_of_one_kind_of_media_leave_the_other_alone(
    processor: InfiniteVLProcessor, tmp_path: Path, group: str, name: str
) -> None:
    video = str(write_video(tmp_path / "a.mp4", list(range(4))))
    picture, clip = make_picture(560, 560), np.zeros((4, 560, 560, 3), np.uint8)
    small = 112 * 112
    call = {group: {name: small if name == "max_pixels" else {"longest_edge": small}}}
    content = [{"type": "image", "image": picture}, {"type": "video", "video": list(clip)}]
    chat = [{"role": "user", "content": content}]
    plain = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    shown = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", **call)
    direct = processor(text=TEXT, images=[picture], videos=[clip], return_tensors="pt", **call)
    changed, other = "image_grid_thw", "video_grid_thw"
    if group == "videos_kwargs":
        changed, other = other, changed
    for inputs in (shown, direct):
        assert num_pixels(inputs[changed]) <= small < num_pixels(inputs[other])
    assert torch.equal(shown[other], plain[other])
    file = processor(text=TEXT, images=[picture], videos=[video], return_tensors="pt", **call)
    assert num_pixels(file["image_grid_thw"]) == num_pixels(direct["image_grid_thw"])


def test_videos_may_be_given_more_pixels_than_their_usual_least(
    processor: InfiniteVLProcessor, tmp_path: Path
) -> None:
    video = str(write_video(tmp_path / "a.mp4", list(range(4))))
    chat = [{"role": "user", "content": [{"type": "video", "video": video}]}]
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", videos_kwargs={"min_pixels": 448 * 448}
    )
    assert num_pixels(inputs["video_grid_thw"]) >= 448 * 448


@pytest.mark.parametrize("group", ["images_kwargs", "videos_kwargs"])
def test_sizes_that_contradict_each_other_are_refused_by_name(
    processor: InfiniteVLProcessor, group: str
) -> None:
    with pytest.raises(InputError, match="max_pixels is given as 12544 and as 3136"):
        processor(text="hi", max_pixels=12544, **{group: {"max_pixels": 3136}})
    with pytest.raises(InputError, match="max_pixels is 'many'"):
        processor(text="hi", **{group: {"max_pixels": "many"}})


def test_the_frames_of_a_video_have_a_limit_together(
    processor: InfiniteVLProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_video(tmp_path / "a.mp4", list(range(40))))
    frames = [make_picture(56, 56)] * 8
    large = {"resized_height": 560, "resized_width": 560}
    huge = {"min_pixels": 400_000, "total_pixels": 10**12}
    monkeypatch.setattr(LIMIT, 8 * 280 * 280)
    for element in ({"video": path, **large}, {"video": path, **huge}, {"video": frames, **large}):
        with pytest.raises(InputError, match=r"frames of .* pixels together"):
            process_vision_info([{"role": "user", "content": [{"type": "video", **element}]}])
    for video in (frames, np.zeros((8, 56, 56, 3), np.uint8)):
        with pytest.raises(InputError, match=r"8 frames of .* pixels together"):
            processor(videos=[video], min_pixels=560 * 560)
        assert processor(videos=[video], max_pixels=280 * 280)["video_grid_thw"].tolist()[0][0] == 4
