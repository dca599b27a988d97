"""The processor's call gives what Qwen2.5-VL's gives, from every form of picture and video."""

import base64
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.errors import InputError
from infinitevl.processing.pictures.patches import clip_patches
from infinitevl.processing.pictures.scaling import resize_frame
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.processing.processor.vision_info import process_vision_info
from tests.processing.media import encoded, make_picture, write_video

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def ask(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


def frames(count: int, size: tuple[int, int] = (84, 56)) -> torch.Tensor:
    return torch.stack([resize_frame(make_picture(*size, seed), size[::-1]) for seed in range(count)])


def test_each_place_takes_the_tokens_of_its_picture(processor: InfiniteVLProcessor) -> None:
    pictures = [make_picture(84, 56), make_picture(112, 112)]
    inputs = processor(text=f"a{IMAGE}b{IMAGE}c", images=pictures, return_tensors="pt")
    expanded = f"a{IMAGE}b{IMAGE}c".replace("<|image_pad|>", "<|image_pad|>" * 6, 1)
    expanded = (expanded[::-1].replace(">|dap_egami|<", ">|dap_egami|<" * 16, 1))[::-1]
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(expanded)["input_ids"]
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6], [1, 8, 8]]
    assert inputs["pixel_values"].shape == (24 + 64, 1176)
    pads = inputs["input_ids"] == processor.image_token_id
    assert torch.equal(inputs["mm_token_type_ids"], pads.long()) and int(pads.sum()) == 22
    assert bool(inputs["attention_mask"].all())


def test_pictures_give_what_the_image_processor_gives(processor: InfiniteVLProcessor) -> None:
    picture = make_picture(300, 200)
    expected = processor.image_processor(images=[picture], return_tensors="pt")
    forms = [
        picture,
        np.asarray(picture),
        encoded(picture),
        [picture],
        [[picture]],
        np.asarray(picture)[None],
    ]
    for images in forms:
        inputs = processor(text=[IMAGE], images=images, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
        assert torch.equal(inputs["image_grid_thw"], expected["image_grid_thw"])


def test_a_video_is_two_frames_a_patch_and_its_seconds_are_not_cut(processor: InfiniteVLProcessor) -> None:
    inputs = processor(text=VIDEO, videos=[frames(6).float()], fps=3, return_tensors="pt")
    assert inputs["video_grid_thw"].tolist() == [[3, 4, 6]]
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2 / 3])
    assert torch.equal(inputs["pixel_values_videos"], clip_patches(frames(6).unflatten(0, (3, 2))))
    assert inputs["mm_token_type_ids"].max() == 2
    assert int((inputs["input_ids"] == processor.video_token_id).sum()) == 18


def test_all_forms_of_a_video_give_the_same(processor: InfiniteVLProcessor) -> None:
    tensor = frames(4)
    pictures = [make_picture(84, 56, seed) for seed in range(4)]
    array = tensor.permute(0, 2, 3, 1).numpy()
    metadata = {"fps": 10.0, "frames_indices": [0, 5, 10, 15], "total_num_frames": 20}
    expected = processor.video(tensor, fps=2.0)
    forms = [tensor, tensor.float(), array, tensor.numpy(), pictures, [np.asarray(p) for p in pictures]]
    for video in [*forms, (tensor, metadata)]:
        for videos in (video, [video], [[video]]):
            inputs = processor(text=VIDEO, videos=videos, return_tensors="pt")
            for name, value in expected.items():
                assert torch.equal(inputs[name], value), name


def test_an_odd_last_frame_is_doubled(processor: InfiniteVLProcessor) -> None:
    tensor = frames(3)
    odd, even = processor.video(tensor, 2), processor.video(torch.cat([tensor, tensor[-1:]]), 2)
    assert torch.equal(odd["pixel_values_videos"], even["pixel_values_videos"])
    assert odd["video_grid_thw"].tolist() == [[2, 4, 6]]


def test_frames_are_resized_as_the_image_processor_would(processor: InfiniteVLProcessor) -> None:
    pictures = [make_picture(100, 60, seed) for seed in range(2)]
    inputs = processor.video(pictures, 2)
    resized = torch.stack([resize_frame(picture, (56, 112)) for picture in pictures])
    assert inputs["video_grid_thw"].tolist() == [[1, 4, 8]]
    assert torch.equal(inputs["pixel_values_videos"], clip_patches(resized[None]))
    assert processor.video(torch.zeros(2, 3, 60, 100), 2)["video_grid_thw"].tolist() == [[1, 4, 8]]


def test_each_video_has_its_own_fps_and_two_is_the_default(processor: InfiniteVLProcessor) -> None:
    videos = [frames(2), frames(4)]
    inputs = processor(text=VIDEO * 2, videos=videos, fps=[1, 8], return_tensors="pt")
    assert inputs["second_per_grid_ts"].tolist() == [2.0, 0.25]
    assert processor(text=VIDEO * 2, videos=videos)["second_per_grid_ts"].tolist() == [1.0, 1.0]


def test_the_published_calls_work_in_their_order(processor: InfiniteVLProcessor, tmp_path: Any) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(30)))
    messages = ask(
        {"type": "image", "image": make_picture(100, 80)},
        {"type": "video", "video": f"file://{path}", "fps": 4, "max_pixels": 360 * 420},
    )
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images, videos, kwargs = process_vision_info(messages, return_video_kwargs=True)
    inputs = processor(
        text=[text], images=images, videos=videos, padding=True, return_tensors="pt", **kwargs
    ).to("cpu")
    assert set(inputs) == {
        *("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"),
        *("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"),
    }
    assert inputs["second_per_grid_ts"].tolist() == [0.5]
    grid = inputs["video_grid_thw"][0]
    assert int((inputs["input_ids"] == processor.video_token_id).sum()) == int(grid.prod()) // 4
    assert grid.tolist() == [6, *(side // 14 for side in videos[0].shape[2:])]
    assert processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)[0].endswith("assistant\n")


def test_the_template_tokenized_equals_the_published_calls(processor: InfiniteVLProcessor) -> None:
    messages = ask(
        {"type": "image", "image": make_picture(100, 80)}, {"type": "video", "video": list(frames(4))}
    )
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    images, videos, kwargs = process_vision_info(messages, return_video_kwargs=True)
    expected = processor(text=[text], images=images, videos=videos, return_tensors="pt", **kwargs)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(messages, **options)
    turn = processor.turn_inputs(messages[0]["content"])
    for name, value in expected.items():
        assert torch.equal(inputs[name], value) and torch.equal(turn[name], value), name


def test_a_picture_in_base64_is_understood(processor: InfiniteVLProcessor) -> None:
    part = {"type": "image", "base64": base64.b64encode(encoded(make_picture())).decode()}
    assert processor.turn_inputs([part])["image_grid_thw"].tolist() == [[1, 4, 6]]


@pytest.mark.parametrize("key", ["image", "url", "path", "image_url"])
def test_transformers_names_for_a_picture_are_understood(
    processor: InfiniteVLProcessor, key: str, tmp_path: Any
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(make_picture()))
    messages = ask({"type": "image", key: str(tmp_path / "a.png")})
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]]


def test_a_small_model_gets_small_pictures_resized_once(tokenizer: Any) -> None:
    look = Qwen2VLImageProcessorPil(size={"shortest_edge": 112 * 112, "longest_edge": 112 * 112})
    processor = InfiniteVLProcessor(look, tokenizer, frame_size=112)
    picture = make_picture(500, 500)
    expected = processor(text=IMAGE, images=picture, return_tensors="pt")
    turn = processor.turn_inputs([{"type": "image", "image": picture}], system=None)
    assert turn["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert torch.equal(turn["pixel_values"], expected["pixel_values"])
    wide = processor.turn_inputs([{"type": "video", "video": [make_picture(1280, 720)] * 2}])
    assert int(wide["video_grid_thw"].prod()) <= 64


def test_a_chat_takes_its_pixels_and_frames_from_the_call_unless_a_part_says_more(
    processor: InfiniteVLProcessor, tmp_path: Any
) -> None:
    path = str(write_video(tmp_path / "a.mp4", list(range(40))))
    picture, small = make_picture(400, 300), {"max_pixels": 10_000}
    video = {"type": "video", "video": path}
    parts = [{"type": "image", "image": picture}, {"type": "image", "image": picture, "max_pixels": 50_000}]
    messages = ask(*parts, video, {**video, "nframes": 6}, {"type": "video", "video": [picture] * 4})
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(messages, processor_kwargs={"fps": 1.0, **small}, **options)
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 8], [1, 12, 18]]
    assert inputs["video_grid_thw"][:, 0].tolist() == [2, 3, 2]
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2.0, 4 / 3, 2.0])
    assert int(inputs["video_grid_thw"][:, 1:].prod(-1).max()) * 14**2 <= 10_000


def test_several_texts_are_padded_on_either_side(processor: InfiniteVLProcessor) -> None:
    texts = ["a", f"longer {IMAGE}"]
    for side in ("left", "right"):
        inputs = processor(
            text=texts, images=[make_picture()], padding=True, padding_side=side, return_tensors="pt"
        )
        mask = inputs["attention_mask"]
        assert inputs["input_ids"].shape == mask.shape == inputs["mm_token_type_ids"].shape
        assert int(mask[0].sum()) == 1 and bool(mask[1].all())
        assert bool(mask[0, -1 if side == "left" else 0])
        row = inputs["input_ids"][0][mask[0].bool()]
        assert row.tolist() == processor.tokenizer("a")["input_ids"]
        assert set(inputs["input_ids"][0][~mask[0].bool()].tolist()) == {processor.tokenizer.pad_token_id}
    processor.tokenizer.padding_side = "left"
    try:
        assert processor(text=texts, images=[make_picture()], padding=True)["attention_mask"][0][0] == 0
    finally:
        processor.tokenizer.padding_side = "right"


def test_padding_lengths_follow_transformers(processor: InfiniteVLProcessor) -> None:
    lengths = {
        len(processor(text=["abc", "a"], **options)["input_ids"][1])
        for options in (
            {"padding": "max_length", "max_length": 32},
            {"padding": True, "pad_to_multiple_of": 32},
            {"text_kwargs": {"padding": "longest", "pad_to_multiple_of": 32}},
        )
    }
    assert lengths == {32}
    assert [len(row) for row in processor(text=["abc", "a"])["input_ids"]] == [3, 1]
    cut = processor(text="abcdefgh", truncation=True, max_length=3)["input_ids"][0]
    assert cut == processor.tokenizer("abcdefgh")["input_ids"][:3]


def test_several_chats_make_a_batch(processor: InfiniteVLProcessor) -> None:
    chats = [ask({"type": "image", "image": make_picture()}), ask()]
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["input_ids"].shape[0] == 2 and inputs["image_grid_thw"].shape == (1, 3)


def test_features_alone_need_no_text(processor: InfiniteVLProcessor) -> None:
    assert set(processor(images=[make_picture()])) == {"pixel_values", "image_grid_thw"}
    assert set(processor.model_input_names) >= {
        "input_ids",
        "pixel_values",
        "video_grid_thw",
        "second_per_grid_ts",
    }


def test_a_call_can_change_the_number_of_pixels(processor: InfiniteVLProcessor) -> None:
    picture = make_picture(400, 300)
    for options in ({"max_pixels": 10_000}, {"size": {"shortest_edge": 3136, "longest_edge": 10_000}}):
        assert processor(images=picture, **options)["image_grid_thw"].tolist() == [[1, 6, 8]]
        assert processor(videos=[[picture] * 2], **options)["video_grid_thw"].tolist() == [[1, 6, 8]]
    assert processor(images=picture)["image_grid_thw"].tolist() == [[1, 22, 28]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, "nothing to process"),
        ({"text": IMAGE}, "1 x <|image_pad|> and 0 were given"),
        ({"text": "none", "images": [make_picture()]}, "0 x <|image_pad|> and 1 were given"),
        ({"text": VIDEO * 2, "videos": [frames(2)]}, "2 x <|video_pad|> and 1 were given"),
        ({"text": 3}, "strings"),
        ({"text": [["a"]]}, "strings"),
        ({"text": ["a", "bc d"], "return_tensors": "pt"}, "padding=True"),
        ({"text": "a", "padding": "most"}, "padding is 'most'"),
        ({"text": "a", "colour": 1}, "does not know ['colour']"),
        ({"text": IMAGE, "images": [b"broken"]}, "not a readable picture"),
        ({"text": IMAGE, "images": [Image.new("RGB", (4020, 20))]}, "200 times"),
        ({"text": IMAGE, "images": [make_picture()], "truncation": True, "max_length": 4}, "cut through"),
        ({"text": VIDEO, "videos": [frames(2)], "fps": 0}, "fps is 0"),
        ({"text": VIDEO, "videos": [frames(2)], "fps": [1, 2]}, "2 values for 1 videos"),
        ({"text": VIDEO, "videos": [torch.zeros(2, 5, 28, 28)]}, "not [T, 3, H, W]"),
        ({"text": VIDEO, "videos": [torch.rand(2, 3, 56, 56)]}, "Multiply by 255"),
        ({"text": VIDEO, "videos": [torch.zeros(0, 3, 28, 28)]}, "no frames"),
        ({"text": VIDEO, "videos": [[]]}, "no frames"),
        ({"text": VIDEO, "videos": [[make_picture(), make_picture(40, 40)]]}, "one size"),
        ({"text": VIDEO, "videos": 3}, "not a video"),
        ({"text": VIDEO, "videos": [frames(2)], "do_sample_frames": True}, "process_vision_info"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_that_cannot_be_meant_is_an_input_error(
    processor: InfiniteVLProcessor, call: dict, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        processor(**call)
    assert words in str(caught.value)


def test_a_picture_without_a_source_is_an_input_error(processor: InfiniteVLProcessor) -> None:
    with pytest.raises(InputError, match="is missing; give"):
        processor.apply_chat_template(ask({"type": "image"}), tokenize=True)


@pytest.mark.parametrize("frame_size", [0, -28, 100])
def test_a_frame_size_without_whole_patches_is_refused(
    processor: InfiniteVLProcessor, frame_size: int
) -> None:
    with pytest.raises(InputError, match="multiple of 28"):
        InfiniteVLProcessor(processor.image_processor, processor.tokenizer, frame_size=frame_size)


def test_generated_ids_become_texts(processor: InfiniteVLProcessor) -> None:
    ids = torch.tensor([processor.tokenizer("a cat<|im_end|>")["input_ids"]] * 2)
    assert processor.post_process_image_text_to_text(ids) == ["a cat"] * 2
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["a cat"] * 2
    assert processor.decode(ids[0]) == "a cat<|im_end|>"
