"""process_vision_info has the meaning and the sizes of qwen-vl-utils 0.0.14.

The expected sizes and frame counts were printed by that package.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.processor.frame_selection import smart_nframes
from infinitevl.processing.processor.vision_info import process_vision_info
from tests.processing.media import break_packets, encoded, make_picture, number_of, write_video
from tests.processing.server import body, served


def message(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


def image_size(**element: Any) -> tuple[int, int]:
    images, videos = process_vision_info(message({"type": "image", **element}))
    assert videos is None
    return images[0].size


def video_of(**element: Any) -> tuple[torch.Tensor, float]:
    images, videos, kwargs = process_vision_info(
        message({"type": "video", **element}), return_video_kwargs=True
    )
    assert images is None and kwargs["do_sample_frames"] is False
    return videos[0], kwargs["fps"][0]


@pytest.mark.parametrize(
    ("size", "keys", "expected"),
    [
        ((500, 375), {}, (504, 364)),
        ((1, 1), {}, (56, 56)),
        ((2000, 10), {}, (1988, 28)),
        ((500, 375), {"min_pixels": 400_000}, (756, 560)),
        ((500, 375), {"max_pixels": 50_000}, (252, 168)),
        ((500, 375), {"resized_height": 280, "resized_width": 100}, (112, 280)),
        ((500, 375), {"resized_height": 280}, (504, 364)),
    ],
)
def test_a_picture_gets_the_size_of_qwen_vl_utils(size: tuple, keys: dict, expected: tuple) -> None:
    assert image_size(image=Image.new("RGB", size), **keys) == expected


def test_a_picture_is_resized_as_pil_does() -> None:
    picture = make_picture(100, 70)
    images, _ = process_vision_info(message({"type": "image", "image": picture}))
    np.testing.assert_array_equal(np.asarray(images[0]), np.asarray(picture.resize((112, 56))))


def test_another_patch_size_gives_other_sizes() -> None:
    images, _ = process_vision_info(
        message({"type": "image", "image": make_picture(100, 70)}), image_patch_size=16
    )
    assert images[0].size == (96, 64)


def test_pictures_may_stand_under_either_key_and_in_many_turns(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(make_picture(56, 84)))
    first = message(
        {"type": "image", "image": make_picture(84, 84)},
        {"type": "image_url", "image_url": f"file://{tmp_path}/a.png"},
    )
    openai = {"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}}
    answer = {"role": "assistant", "content": "A picture."}
    conversation = [*first, answer, *message(openai)]
    assert [i.size for i in process_vision_info(conversation)[0]] == [(84, 84), (56, 84), (56, 84)]
    assert [i.size for i in process_vision_info([conversation, first])[0]][3:] == [(84, 84), (56, 84)]


def test_text_alone_gives_nothing() -> None:
    assert process_vision_info([{"role": "user", "content": "Hello"}]) == (None, None)
    assert process_vision_info(message(), return_video_kwargs=True)[2] == {
        "do_sample_frames": False,
        "fps": [],
    }


@pytest.mark.parametrize(
    ("keys", "count", "fps", "numbers"),
    [
        ({}, 6, 2.0, [0, 6, 12, 17, 23, 29]),
        ({"fps": 1}, 4, 4 / 3, [0, 10, 19, 29]),
        ({"fps": 1, "min_frames": 2}, 2, 2 / 3, [0, 29]),
        ({"fps": 10}, 30, 10.0, list(range(30))),
        ({"fps": 99, "max_frames": 8}, 8, 8 / 3, [0, 4, 8, 12, 17, 21, 25, 29]),
        ({"nframes": 5}, 4, 4 / 3, [0, 10, 19, 29]),
        ({"video_start": 1.0, "video_end": 2.0}, 4, 4 / 11 * 10, [10, 13, 17, 20]),
        ({"video_start": 2.5}, 4, 8.0, [25, 26, 28, 29]),
        ({"video_start": 2.45, "video_end": 2.75}, 2, 20 / 3, [25, 27]),
        ({"video_end": 0.5}, 4, 4 / 6 * 10, [0, 2, 3, 5]),
    ],
    ids=str,
)
def test_the_frames_of_a_file_are_chosen_as_in_qwen_vl_utils(
    tmp_path: Path, keys: dict, count: int, fps: float, numbers: list[int]
) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(30)))
    video, rate = video_of(video=f"file://{path}", **keys)
    assert video.shape == (count, 3, 280, 392) and video.dtype == torch.float32
    assert rate == pytest.approx(fps)
    assert [number_of(frame.numpy()) for frame in video] == numbers


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        ({"max_pixels": 30_000, "min_pixels": 3136}, (112, 168)),
        ({"min_pixels": 3136}, (56, 56)),
        ({"resized_height": 100, "resized_width": 60}, (112, 56)),
        ({"total_pixels": 200_000}, (280, 392)),
    ],
    ids=str,
)
def test_the_frames_of_a_video_get_the_size_of_qwen_vl_utils(tmp_path: Path, keys: dict, size: tuple) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(30)))
    if "max_pixels" in keys:
        frames = [Image.new("RGB", (400, 300))] * 4
        assert video_of(video=frames, **keys)[0].shape[2:] == size
    else:
        assert video_of(video=str(path), **keys)[0].shape[2:] == size


def test_more_pixels_than_the_limit_are_said_to_be_too_many(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        video_of(video=[make_picture(1200, 800)] * 2, max_pixels=10**6)
    assert "max_pixels 1000000 is above the limit" in caplog.text


def test_frames_in_a_list_are_kept_and_made_even(tmp_path: Path) -> None:
    (tmp_path / "2.png").write_bytes(encoded(make_picture(336, 336, 2)))
    frames = [make_picture(336, 336, 1), str(tmp_path / "2.png"), f"file://{tmp_path}/2.png"]
    video, fps = video_of(video=frames, sample_fps=4)
    assert video.shape == (4, 3, 336, 336) and fps == 4
    assert torch.equal(video[1], video[2]) and torch.equal(video[2], video[3])
    np.testing.assert_array_equal(video[0].permute(1, 2, 0).numpy(), np.asarray(frames[0]))
    assert video_of(video=frames)[1] == 2


def test_arrays_and_iterators_of_frames_are_videos_too() -> None:
    frames = np.stack([np.asarray(make_picture(336, 336, seed)) for seed in range(4)])
    expected, _ = video_of(video=list(frames))
    for video in (frames, iter(frames), torch.from_numpy(frames).permute(0, 3, 1, 2)):
        assert torch.equal(video_of(video=video)[0], expected)


def test_metadata_name_the_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(30)))
    conversation = message({"type": "video", "video": str(path), "nframes": 4})
    _, videos, kwargs = process_vision_info(
        conversation, return_video_kwargs=True, return_video_metadata=True
    )
    video, metadata = videos[0]
    assert len(video) == 4 and kwargs == {"do_sample_frames": False}
    assert metadata["frames_indices"] == [0, 10, 19, 29]
    assert metadata["fps"] == 10 and metadata["total_num_frames"] == 30


def test_a_video_at_an_address_is_downloaded_and_private_ones_are_refused(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4", list(range(30))).read_bytes()
    with served({"/a.mp4": body(data)}) as (address, asked):
        conversation = message({"type": "video", "video": f"{address}/a.mp4"})
        with pytest.raises(InputError, match="not a public address"):
            process_vision_info(conversation)
        _, videos = process_vision_info(conversation, allow_private=True)
    assert videos[0].shape[0] == 6 and asked == ["/a.mp4"]


def test_a_video_whose_end_cannot_be_decoded_is_filled_up_with_its_last_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(30)), codec="libx264")
    break_packets(path, 20, 29)
    video, _ = video_of(video=str(path), nframes=6)
    numbers = [number_of(frame.numpy()) for frame in video]
    assert numbers[:3] == [0, 6, 12] and len(set(numbers[-2:])) == 1 and 12 < numbers[-1] < 20


@pytest.mark.parametrize(
    ("element", "words"),
    [
        ({"type": "video", "video": []}, "empty list"),
        ({"type": "video", "video": [make_picture(60, 60), make_picture(150, 60)]}, "one size"),
        ({"type": "video", "video": [make_picture()] * 4, "min_pixels": 9, "max_pixels": 4}, "min_pixels"),
        ({"type": "image"}, r"messages\[0\]\.content\[0\]: .* needs a key"),
        ({"type": "imag", "path": "a.png"}, r"messages\[0\]\.content\[0\]\.type: is 'imag'; valid are"),
        ({"type": "image", "image": b"broken"}, "not a readable picture"),
        ({"type": "image", "image": Image.new("RGB", (4020, 20))}, "200 times"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_an_input_error(element: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        process_vision_info(message(element))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"fps": 1, "nframes": 4}, "not both"),
        ({"nframes": 40}, "valid are 2 to 30"),
        ({"nframes": 0}, "valid are 2 to 30"),
        ({"video_start": 2, "video_end": 1}, "start before the end"),
        ({"video_start": 99}, "start before the end"),
    ],
    ids=str,
)
def test_an_impossible_choice_of_frames_is_an_input_error(tmp_path: Path, keys: dict, words: str) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(30)))
    with pytest.raises(InputError, match=words):
        video_of(video=str(path), **keys)


def test_an_empty_or_missing_video_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    for name in ("a.mp4", "none.mp4"):
        with pytest.raises(SourceError):
            video_of(video=str(tmp_path / name))


def test_no_messages_are_an_input_error() -> None:
    with pytest.raises(InputError, match="no message"):
        process_vision_info([])


def test_the_number_of_frames_is_even_and_within_the_video() -> None:
    for total in range(2, 60):
        for fps in (0.1, 1, 2, 7.5, 30):
            count = smart_nframes({"fps": fps}, total, 25.0)
            assert count % 2 == 0 and 2 <= count <= total
