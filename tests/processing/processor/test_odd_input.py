"""Pictures, settings and calls of the odd kind: the right pixels, or an error that names what is wrong."""

import io
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infinitevl.errors import CheckpointError, InputError, SourceError
from infinitevl.processing.pictures.opening import open_image
from infinitevl.processing.pictures.pixels import narrow
from infinitevl.processing.processor.call_options import CallOptions
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.processing.processor.vision_info import process_vision_info
from infinitevl.processing.prompt.media_settings import SETTINGS
from tests.processing.media import encoded, make_picture, write_video

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def values_of(source: object) -> list[int]:
    return sorted(set(np.asarray(open_image(source)).ravel().tolist()))


def test_a_mask_is_black_and_white() -> None:
    mask = np.zeros((20, 20), bool)
    mask[:, 10:] = True
    for given in (mask, torch.from_numpy(mask).expand(3, 20, 20), np.stack([mask] * 3, -1)):
        assert values_of(given) == values_of(Image.fromarray(mask)) == [0, 255]


@pytest.mark.parametrize("order", ["<", ">", "="])
def test_the_byte_order_of_an_array_makes_no_difference(order: str) -> None:
    for kind in ("u2", "i4", "f4", "f8"):
        numbers = np.arange(256).reshape(16, 16) * (257 if kind == "u2" else 1)
        np.testing.assert_array_equal(
            np.asarray(open_image(numbers.astype(f"{order}{kind}")))[..., 0], np.arange(256).reshape(16, 16)
        )


@pytest.mark.parametrize(
    "odd",
    [
        np.zeros((8, 8), complex),
        np.zeros((8, 8), "U3"),
        np.zeros((8, 8), object),
        np.zeros((8, 8), "datetime64[s]"),
        np.zeros((8, 0, 3), np.uint8),
        torch.zeros(3, 8, 8, dtype=torch.complex64),
        torch.empty(3, 8, 8, device="meta"),
        torch.zeros(3, 8, 8).to_sparse(),
        torch.tensor(3.0),
        np.full((8, 8), np.nan),
    ],
    ids=lambda value: f"{type(value).__name__} {value.dtype} {tuple(value.shape)}",
)
def test_an_array_that_is_no_picture_is_an_input_error(processor: InfiniteVLProcessor, odd: Any) -> None:
    with pytest.raises(InputError):
        open_image(odd)
    if odd.ndim == 2 or odd.ndim == 3:
        with pytest.raises(InputError):
            processor(videos=[odd[None]] if odd.ndim == 3 else [[odd] * 2])


def test_arrays_may_lie_in_memory_in_any_way() -> None:
    plain = np.array(make_picture(30, 20))
    for given in (plain[::-1][::-1], np.asfortranarray(plain), plain.astype(np.float64), plain.astype(">i8")):
        np.testing.assert_array_equal(np.asarray(open_image(given)), plain)
    np.testing.assert_array_equal(np.asarray(open_image(plain[:, ::-1])), plain[:, ::-1])
    for dtype in (torch.bfloat16, torch.float16):
        tensor = torch.from_numpy(plain).permute(2, 0, 1).to(dtype).requires_grad_()
        np.testing.assert_array_equal(np.asarray(open_image(tensor)), plain)


def test_a_video_of_any_array_equals_the_plain_one(processor: InfiniteVLProcessor) -> None:
    plain = np.stack([np.asarray(make_picture(56, 56, seed)) for seed in range(4)])
    wanted = processor(videos=[plain])["pixel_values_videos"]
    for given in (
        plain[::-1][::-1],
        plain.astype(np.uint16) * 257,
        plain.astype(np.int64),
        plain.astype(">f4"),
    ):
        assert torch.allclose(processor(videos=[given])["pixel_values_videos"], wanted, atol=1e-6)


def test_wide_values_are_narrowed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:

    random = np.random.default_rng(0)
    for wide in (
        random.integers(0, 65536, (70, 9), dtype=np.uint16),
        random.integers(0, 70000, (70, 9), dtype=np.int32),
        random.random((70, 9)).astype(np.float32),
    ):
        whole = narrow(wide)
        monkeypatch.setattr("infinitevl.processing.pictures.pixels._ROWS", 20)
        np.testing.assert_array_equal(narrow(wide), whole)


def test_a_wide_picture_takes_little_memory() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9000, 9000), np.uint16)).save(buffer, "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert open_image(buffer.getvalue()).size == (9000, 9000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1200 * 1024


def test_one_limit_of_pixels_holds_for_every_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:

    monkeypatch.setattr("infinitevl.processing.pictures.pixels.MAX_PIXELS", 99)
    picture = Image.new("RGB", (10, 10))
    (tmp_path / "a.png").write_bytes(encoded(picture))
    for given in (
        picture,
        np.asarray(picture),
        encoded(picture),
        tmp_path / "a.png",
        Image.open(tmp_path / "a.png"),
    ):
        with pytest.raises(InputError, match="more than 99"):
            open_image(given)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_exif_is_turned_upright(orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255
    picture, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    turned = open_image(encoded(picture, "PNG", exif=exif))
    assert turned.size == ((32, 16) if orientation < 5 else (16, 32))
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    rows, columns = turned.height // 2, turned.width // 2
    quarters = np.asarray(turned).reshape(2, rows, 2, columns, 3).mean((1, 3, 4))
    assert quarters[corner] == 255 and quarters.sum() == 255


@pytest.mark.parametrize("mode", "1 L LA P PA RGBA RGBa La CMYK YCbCr HSV LAB I F I;16".split())
def test_every_mode_of_pil_becomes_rgb(mode: str) -> None:
    white = Image.new("RGB", (20, 10), (255, 255, 255))
    if mode in ("LAB", "I;16"):
        picture = Image.new(mode, (20, 10), (255, 128, 128) if mode == "LAB" else 65535)
    else:
        through = {"RGBa": "RGBA", "La": "LA", "PA": "P"}.get(mode, mode)
        picture = white.convert(through).convert(mode)
    shown = open_image(picture)
    assert shown.mode == "RGB" and shown.size == (20, 10) and np.asarray(shown).min() >= 250


def test_every_setting_of_a_part_is_checked_by_name(processor: InfiniteVLProcessor, tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", list(range(20))))
    for name in SETTINGS:
        for value in ("12544", None, float("nan"), float("inf"), True, [1.0], b"1"):
            part = {"type": "video", "video": path, name: value}
            for call in (
                lambda part=part: process_vision_info([{"role": "user", "content": [part]}]),
                lambda part=part: processor.apply_chat_template(
                    [{"role": "user", "content": [part]}], tokenize=True
                ),
                lambda part=part: processor.turn_inputs([part]),
            ):
                with pytest.raises(InputError, match=rf"{name}: is .*; give a"):
                    call()


def test_a_setting_that_is_misspelt_is_named(tmp_path: Path) -> None:
    for name, meant in (("max_pixel", "max_pixels"), ("nframe", "nframes"), ("video_strat", "video_start")):
        part = {"type": "image", "image": make_picture(), name: 3136}
        with pytest.raises(InputError, match=rf"content\[0\]\.{name}: is no setting; did you mean {meant}"):
            process_vision_info([{"role": "user", "content": [part]}])
    part = {"type": "image", "image": make_picture(), "id": "a row's own key"}
    assert process_vision_info([{"role": "user", "content": [part]}])[0]


@pytest.mark.parametrize(
    ("call", "frames"),
    [
        ({}, 6),
        ({"num_frames": 4}, 4),
        ({"nframes": 8}, 8),
        ({"video_fps": 4}, 12),
        ({"fps": 4}, 12),
        ({"processor_kwargs": {"num_frames": 4}}, 4),
        ({"videos_kwargs": {"num_frames": 4}}, 4),
    ],
    ids=str,
)
def test_the_number_of_frames_is_chosen_by_any_of_its_names(
    processor: InfiniteVLProcessor, tmp_path: Path, call: dict, frames: int
) -> None:
    path = str(write_video(tmp_path / "a.mp4", list(range(30))))
    chat = [{"role": "user", "content": [{"type": "video", "video": path}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", **call)
    assert inputs["video_grid_thw"][0, 0] * 2 == frames
    direct = processor(text=VIDEO, videos=[path], return_tensors="pt", **call.get("processor_kwargs", call))
    for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
        assert torch.equal(direct[name], inputs[name])
    assert direct["second_per_grid_ts"] * inputs["video_grid_thw"][0, 0] == pytest.approx(3.0)


def test_a_part_s_own_choice_goes_before_the_call_s(processor: InfiniteVLProcessor, tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", list(range(30))))
    for part, call in (
        ({"fps": 4}, {"num_frames": 4}),
        ({"num_frames": 12}, {"fps": 1}),
        ({"nframes": 12}, {"num_frames": 4}),
    ):
        chat = [{"role": "user", "content": [{"type": "video", "video": path, **part}]}]
        inputs = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", **call
        )
        assert inputs["video_grid_thw"][0, 0] * 2 == 12


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"max_pixel": 3136}, "max_pixel is known neither .* did you mean max_pixels"),
        ({"colour": 1}, "colour is known neither"),
        ({"tools": [{"type": "function", "function": {"name": "weather"}}]}, "tools is known neither"),
        ({"documents": [{"title": "a", "text": "b"}]}, "documents is known neither"),
        (
            {"padding": "max_length", "text_kwargs": {"padding": False}},
            "padding is given as 'max_length' and as",
        ),
        ({"fps": 2, "videos_kwargs": {"fps": 1}}, "fps is given as"),
        ({"text_kwargs": 3}, "text_kwargs is 3"),
        ({"fps": 1, "num_frames": 4}, "not both"),
        ({"fps": "1"}, "fps is '1'"),
        ({"max_pixels": "12544"}, "max_pixels is '12544'"),
        ({"max_pixels": float("nan")}, "max_pixels is nan"),
        ({"size": {"height": 3, "width": 3}}, "size has no 'height'"),
        ({"size": 448}, "size is 448"),
        ({"padding_side": "middle"}, "padding_side is 'middle'"),
    ],
    ids=str,
)
def test_a_keyword_that_would_not_be_heard_is_refused(
    processor: InfiniteVLProcessor, call: dict, words: str
) -> None:
    chat = [{"role": "user", "content": "hi"}]
    for tokenize in (True, False):
        with pytest.raises(InputError, match=words):
            processor.apply_chat_template(chat, tokenize=tokenize, **call)
    assert processor.apply_chat_template(chat, tools=None, documents=None, add_vision_id=True)


@pytest.mark.parametrize("key", ["tool_calls", "function_call", "reasoning_content"])
def test_what_stands_beside_content_does_not_vanish(processor: InfiniteVLProcessor, key: str) -> None:
    call = [{"function": {"name": "weather<|im_end|>", "arguments": {}}}]
    for content in ("", None):
        chat = [{"role": "user", "content": "Oslo?"}, {"role": "assistant", "content": content, key: call}]
        with pytest.raises(InputError, match=rf"field messages\[1\]\.{key}: the chat template has no place"):
            processor.apply_chat_template(chat)
        own = f"{{% for m in messages %}}{{{{ m.content }}}}{{{{ m.{key} }}}}{{% endfor %}}{{{{ tools }}}}"
        text = processor.apply_chat_template(chat, own, tools=[{"name": "now<|im_end|>"}])
        assert "weather" in text and "now" in text and "<|im_end|>" not in text


def test_half_a_character_is_an_input_error_that_names_its_place(processor: InfiniteVLProcessor) -> None:
    half = "What? \ud83d"
    calls = {
        r"messages\[0\]\.content": lambda: processor.apply_chat_template([{"role": "user", "content": half}]),
        r"messages\[0\]\.content\[0\]\.text": lambda: processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": half}]}], tokenize=True
        ),
        r"messages\[0\]\.role": lambda: processor.apply_chat_template([{"role": half, "content": "a"}]),
        "content": lambda: processor.turn_inputs(half),
        "system": lambda: processor.turn_inputs("hi", half),
        r"text\[1\]": lambda: processor(text=["a", half]),
        "text": lambda: processor(text=half),
    }
    for place, call in calls.items():
        with pytest.raises(InputError, match=rf"{place}.* half of one"):
            call()


def test_a_saved_processor_pads_on_the_left_unless_told_otherwise(
    processor: InfiniteVLProcessor, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    chats = [[{"role": "user", "content": words}] for words in ("hi", "hello, who are you")]
    for side, more in (("left", {}), ("right", {"padding_side": "right"})):
        loaded = InfiniteVLProcessor.from_pretrained(tmp_path, **more)
        inputs = loaded.apply_chat_template(
            chats, tokenize=True, return_dict=True, padding=True, return_tensors="pt"
        )
        assert inputs["attention_mask"][0, 0 if side == "left" else -1] == 0
    loaded.save_pretrained(tmp_path)  # the right side was asked for, so the folder states it
    assert InfiniteVLProcessor.from_pretrained(tmp_path).tokenizer.padding_side == "right"
    loaded.tokenizer.padding_side = "left"
    loaded.save_pretrained(tmp_path)
    assert InfiniteVLProcessor.from_pretrained(tmp_path).tokenizer.padding_side == "left"


def test_settings_given_at_loading_take_effect(processor: InfiniteVLProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    picture = make_picture(400, 300)
    small = {"shortest_edge": 3136, "longest_edge": 10_000}
    for given in ({"size": small}, {"max_pixels": 10_000}, {"size": small, "max_pixels": 10_000}):
        loaded = InfiniteVLProcessor.from_pretrained(tmp_path, **given)
        assert loaded(images=picture)["image_grid_thw"].tolist() == [[1, 6, 8]]
    loaded = InfiniteVLProcessor.from_pretrained(tmp_path, image_mean=[0, 0, 0], image_std=(1, 1, 1))
    white = Image.new("RGB", (56, 56), "white")
    for pixels in (loaded(images=white)["pixel_values"], loaded(videos=[[white] * 2])["pixel_values_videos"]):
        assert torch.as_tensor(pixels).min() == pytest.approx(1)
    assert InfiniteVLProcessor.from_pretrained(tmp_path, do_normalize=True, use_fast=True, revision="main")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"do_normalize": False}, "do_normalize is False; this processor knows True alone"),
        ({"do_resize": False}, "do_resize"),
        ({"resample": 2}, "resample is 2"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"image_mean": [0.5]}, "image_mean is .* three numbers"),
        ({"image_std": "0.5"}, "image_std"),
        ({"max_pixels": "12544"}, "max_pixels is '12544'"),
        ({"size": {"height": 3}}, "size has no 'height'"),
        ({"colour": 1}, r"cannot be loaded with \['colour'\]"),
        ({"max_pixel": 1}, "max_pixel"),
    ],
    ids=str,
)
def test_settings_that_would_not_take_effect_are_refused(
    processor: InfiniteVLProcessor, tmp_path: Path, given: dict, words: str
) -> None:
    processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=words):
        InfiniteVLProcessor.from_pretrained(tmp_path, **given)


def test_a_folder_whose_pictures_are_prepared_otherwise_is_refused(
    processor: InfiniteVLProcessor, tmp_path: Path
) -> None:
    processor.image_processor.do_normalize = False
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="do_normalize is False"):
        InfiniteVLProcessor.from_pretrained(tmp_path)


def test_limits_of_a_call_are_the_size_of_a_folder_or_its_own() -> None:
    size = {"shortest_edge": 3136, "longest_edge": 12544}
    assert CallOptions.from_kwargs({}).limits(size) == (3136, 12544)
    assert CallOptions.from_kwargs({"size": {"max_pixels": 9000}}).limits(size) == (3136, 9000)
    assert CallOptions.from_kwargs({"text_kwargs": {"padding": True}, "padding": True}).padding is True


@pytest.mark.parametrize(
    "messages",
    [None, 3, "x", {"a": 1}, [3], [None], [{}], [{"role": "user"}], [[3]], [[]], [[{"role": "user"}]]],
    ids=repr,
)
def test_messages_that_are_none_are_input_errors(processor: InfiniteVLProcessor, messages: Any) -> None:
    if messages != [[]]:  # no message holds no picture
        with pytest.raises(InputError):
            process_vision_info(messages)
    with pytest.raises(InputError):
        processor.apply_chat_template(messages)


@pytest.mark.parametrize(
    "video", [3, None, object(), object, {}, b"", b"bytes", "", ".", "\0", [[]], [None]], ids=repr
)
def test_a_video_that_is_none_is_an_error_of_the_package(video: Any) -> None:
    with pytest.raises((InputError, SourceError)):
        process_vision_info([{"role": "user", "content": [{"type": "video", "video": video}]}])


def test_a_picture_is_not_scaled_beyond_the_limit() -> None:
    for keys in ({"min_pixels": 1e30, "max_pixels": 1e31}, {"min_pixels": 1e9, "max_pixels": 1e9}):
        with pytest.raises(InputError, match="as it should be scaled, has"):
            process_vision_info(
                [{"role": "user", "content": [{"type": "image", "image": make_picture(), **keys}]}]
            )
