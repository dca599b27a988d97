"""Pictures of every kind come out upright, in RGB, or as an error that says what to do."""

import base64
import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as transformers_resize

from infinitevl.errors import InputError
from infinitevl.processing.pictures.opening import open_image
from infinitevl.processing.pictures.patches import clip_patches, frame_patches
from infinitevl.processing.pictures.scaling import resize_bicubic, resize_frame, smart_resize
from tests.processing.media import encoded, make_picture


def pixels(source: object) -> np.ndarray:
    return np.asarray(open_image(source))


def test_all_ways_to_name_a_picture_give_the_same_pixels(tmp_path: Path) -> None:
    image = make_picture()
    data = encoded(image)
    path = tmp_path / "a picture äö.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    quoted = path.as_uri()
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    sources = [
        image,
        data,
        bytearray(data),
        path,
        str(path),
        f"file://{path}",
        quoted,
        uri,
        tensor,
        np.array(image),
    ]
    for source in [*sources, quoted.replace("file://", "file://localhost"), tensor.float(), tensor.numpy()]:
        np.testing.assert_array_equal(pixels(source), np.array(image))


def test_a_file_whose_name_holds_a_percent_sign_is_found(tmp_path: Path) -> None:
    path = tmp_path / "100%25.png"
    path.write_bytes(encoded(make_picture()))
    assert open_image(f"file://{path}").size == (84, 56)


def test_a_data_uri_may_be_percent_encoded_or_wrapped() -> None:
    data = encoded(make_picture())
    text = base64.encodebytes(data).decode()
    assert open_image(f"data:image/png;base64,{text}").size == (84, 56)
    percent = "".join(f"%{byte:02x}" for byte in data)
    assert open_image(f"data:image/png,{percent}").size == (84, 56)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_turned_upright(orientation: int) -> None:
    upright = Image.new("RGB", (80, 40), (250, 250, 250))
    upright.paste((200, 0, 0), (0, 0, 40, 20))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_spoil_a_picture() -> None:
    image = Image.new("RGB", (30, 30), (10, 200, 30))
    data = encoded(image, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert open_image(data).size == (30, 30)


def test_cmyk_comes_out_in_the_colours_it_shows() -> None:
    image = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    red, green, blue = pixels(encoded(image, "JPEG", quality=95))[20, 20]
    assert red > 240 and green < 15 and blue < 15
    assert tuple(pixels(image)[0, 0]) == (255, 0, 0)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_brightness(format: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    shown = pixels(encoded(Image.fromarray(ramp), format))
    np.testing.assert_array_equal(shown[0, :, 0], np.arange(256))
    np.testing.assert_array_equal(pixels(ramp), shown)


@pytest.mark.parametrize(
    ("values", "mode", "shown"),
    [
        ([0, 100, 255], np.int32, [0, 100, 255]),
        ([0, 32896, 65535], np.int32, [0, 128, 255]),
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 127.6, 300.0], np.float32, [0, 128, 255]),
    ],
)
def test_wide_grey_values_are_brought_to_8_bit(values: list, mode: type, shown: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=mode))
    assert pixels(image)[0, :, 0].tolist() == shown


def test_transparency_is_shown_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 1), 1)
    assert pixels(encoded(clear))[0, 0].tolist() == [255, 255, 255]
    assert pixels(encoded(half))[0, 0].tolist() == [127, 127, 127]
    shown = pixels(encoded(palette, transparency=0))
    assert shown[0, 0].tolist() == [255, 255, 255] and shown[1, 1].tolist() == [40, 50, 60]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "YCbCr", "HSV"])
def test_every_common_mode_becomes_rgb(mode: str) -> None:
    image = make_picture().convert("RGBA" if mode == "LA" else "RGB").convert(mode)
    assert open_image(image).mode == "RGB"


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_an_animation_shows_its_first_frame(format: str) -> None:
    first, second = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (20, 20), (0, 0, 255))
    data = encoded(
        first,
        format,
        save_all=True,
        append_images=[second],
        **({"lossless": True} if format == "WEBP" else {}),
    )
    assert pixels(data)[10, 10].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"not a picture at all",
        encoded(make_picture())[:200],
        encoded(make_picture(), "JPEG")[:300],
        "data:image/png;base64,!!!!",
        "data:image/png;base64",
        "data:image/png;base64,",
        "/no/such/picture.png",
        "a\0b.png",
        Path("/"),
        Image.new("RGB", (0, 5)),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 7), np.uint8),
        np.full((5, 5, 3), 300),
        np.full((5, 5, 3), -1.0),
        np.full((5, 5, 3), float("nan")),
        np.full((5, 5, 3), 0.5),
        object(),
        None,
        3,
    ],
    ids=str,
)
def test_what_is_not_a_picture_is_an_input_error(source: object) -> None:
    with pytest.raises(InputError):
        open_image(source)


def test_an_error_names_the_picture_but_not_all_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"xx")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        open_image(tmp_path / "broken.jpg")
    with pytest.raises(InputError) as caught:
        open_image("data:image/png;base64," + "A" * 10_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("side", [10_000, 20_000])  # PIL itself refuses the second
def test_a_picture_that_is_too_large_is_told_the_limit(side: int) -> None:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    with pytest.raises(InputError, match="more than 89478485"):
        open_image(file.getvalue())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_an_error_about_bytes_says_how_many_and_shows_no_object_of_ours(kind: Any) -> None:
    with pytest.raises(InputError, match="given as 4 bytes is not a readable picture") as caught:
        open_image(kind(b"nope"))
    assert "0x" not in str(caught.value) and "<" not in str(caught.value)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infinitevl.processing.pictures.pixels.MAX_PIXELS", 100 * 100)
    with pytest.raises(InputError, match="200x100"):
        open_image(encoded(Image.new("RGB", (200, 100))))


def test_a_png_that_claims_a_huge_size_is_refused() -> None:
    data = bytearray(encoded(make_picture()))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(InputError):
        open_image(bytes(data))


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.integers(0, 2**32), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]))
def test_damaged_bytes_give_a_picture_or_an_input_error(seed: int, format: str) -> None:
    random = np.random.default_rng(seed)
    data = bytearray(encoded(make_picture(20, 16), format))
    for place in random.integers(0, len(data), 6):
        data[place] = random.integers(256)
    with contextlib.suppress(InputError):
        assert open_image(bytes(data)).mode == "RGB"


@given(
    st.integers(15, 4000),
    st.integers(15, 4000),
    st.sampled_from([(3136, 12845056), (100352, 602112), (12544, 12544), (784, 3136)]),
)
def test_smart_resize_equals_transformers(height: int, width: int, limits: tuple[int, int]) -> None:
    if max(height, width) <= 200 * min(height, width):
        assert smart_resize(height, width, 28, *limits) == transformers_resize(height, width, 28, *limits)


@given(st.integers(1, 25_000), st.integers(1, 25_000), st.sampled_from([1_003_520, 12_845_056]))
def test_smart_resize_gives_whole_patches_within_the_limits(height: int, width: int, most: int) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(InputError, match="200 times"):
            smart_resize(height, width, 28, 3136, most)
        return
    tall, wide = smart_resize(height, width, 28, 3136, most)
    assert tall % 28 == 0 and wide % 28 == 0 and 3136 <= tall * wide <= most


def test_a_side_is_never_rounded_down_to_nothing() -> None:
    assert smart_resize(10, 2000, 28, 784, 3136) == (28, 784)


@pytest.mark.parametrize("arguments", [(0, 10), (-1, 10), (10, 0)])
def test_a_picture_without_pixels_has_no_size(arguments: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="no pixels"):
        smart_resize(*arguments)


def test_limits_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="min_pixels 5000"):
        smart_resize(100, 100, 28, 5000, 4000)


def test_a_pixel_grows_to_the_minimum_and_a_panorama_shrinks() -> None:
    assert smart_resize(1, 1, 28, 3136) == (56, 56)
    assert smart_resize(4000, 20_000, 28, 3136, 1_003_520) == (448, 2240)
    assert smart_resize(100, 20_000) == (112, 19992)


def test_a_frame_is_resized_exactly_as_pil_does() -> None:
    image = make_picture(123, 77)
    expected = np.asarray(image.resize((112, 84), Image.Resampling.BICUBIC))
    for source in (image, np.asarray(image), torch.from_numpy(np.array(image)).permute(2, 0, 1)):
        frame = resize_frame(source, (84, 112))
        assert frame.shape == (3, 84, 112) and frame.dtype == torch.uint8 and frame.is_contiguous()
        np.testing.assert_array_equal(frame.permute(1, 2, 0).numpy(), expected)


def test_a_frame_owns_its_memory() -> None:
    pixels = np.zeros((28, 28, 3), np.uint8)
    frame = resize_frame(pixels, (28, 28))
    pixels[:] = 255
    assert not frame.any()


def test_torch_bicubic_stays_close_to_pil() -> None:
    image = Image.fromarray(np.linspace(0, 255, 120 * 90 * 3).reshape(90, 120, 3).astype(np.uint8))
    frame = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    scaled = resize_bicubic(frame, (56, 84))
    assert (scaled - resize_frame(image, (56, 84)).float()).abs().max() <= 2
    assert scaled.min() >= 0 and scaled.max() <= 255 and torch.equal(scaled, scaled.round())


@pytest.mark.parametrize("size", [(28, 28), (56, 84), (112, 28)])
def test_frame_patches_equal_those_of_the_image_processor(size: tuple[int, int]) -> None:
    height, width = size
    pictures = [make_picture(width, height, seed) for seed in range(3)]
    exact = Qwen2VLImageProcessorPil(size={"shortest_edge": 1, "longest_edge": 10**7})
    expected = exact(images=pictures, return_tensors="pt")["pixel_values"]
    frames = torch.stack([resize_frame(picture, size) for picture in pictures])
    patches = frame_patches(frames, mean=exact.image_mean, std=exact.image_std)
    assert patches.shape == expected.shape and patches.dtype == torch.float32
    torch.testing.assert_close(patches, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
def test_frame_patches_on_a_gpu_equal_those_on_the_cpu() -> None:
    frames = torch.stack([resize_frame(make_picture(112, 84, seed), (84, 112)) for seed in range(4)])
    torch.testing.assert_close(
        frame_patches(frames.cuda()).cpu(), frame_patches(frames), rtol=1e-6, atol=1e-6
    )


def test_a_clip_of_two_frames_interleaves_them_where_a_picture_is_doubled() -> None:
    frames = torch.stack([resize_frame(make_picture(56, 56, seed), (56, 56)) for seed in (1, 2)])
    first, second = (frame_patches(frame[None]).unflatten(1, (3, 2, 196)) for frame in frames)
    both = clip_patches(frames[None]).unflatten(1, (3, 2, 196))
    assert torch.equal(both[:, :, 0], first[:, :, 0]) and torch.equal(both[:, :, 1], second[:, :, 1])


def test_patches_do_not_depend_on_the_default_dtype_and_leave_the_frames_alone() -> None:
    frames = torch.full((1, 2, 3, 28, 28), 77.0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        patches = clip_patches(frames)
    finally:
        torch.set_default_dtype(torch.float32)
    assert patches.dtype == torch.float32 and bool((frames == 77).all())
    torch.testing.assert_close(
        patches[0, 0].item(), (77 / 255 - 0.48145466) / 0.26862954, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(1, 3, 30, 28), (1, 3, 28, 14), (1, 4, 28, 28)])
def test_frames_that_make_no_whole_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        frame_patches(torch.zeros(shape, dtype=torch.uint8))


def test_a_closed_picture_is_an_input_error() -> None:
    image = Image.open(io.BytesIO(encoded(make_picture())))
    image.close()
    with pytest.raises(InputError):
        open_image(image)
