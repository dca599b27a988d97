"""A picture gives the same pixels through every entrance: stream, chat, processor, training row."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from infinitevl.engine.preprocess import Preprocessor
from infinitevl.processing.pictures.patches import frame_patches
from infinitevl.training.data.messages import Sample, read_messages
from infinitevl.training.data.tokens import Limits, TokenWriter
from tests.processing.media import encoded, make_picture
from tests.support import tiny_config, tiny_processor

SIZE = (56, 84)  # height, width, once upright


def turned() -> bytes:
    """A JPEG that EXIF turns by a quarter, with a colour profile."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encoded(make_picture(*SIZE), "JPEG", exif=exif.tobytes(), icc_profile=profile)


def deep() -> bytes:
    wide = np.random.default_rng(0).integers(0, 65536, SIZE, dtype=np.uint16)
    return encoded(Image.fromarray(wide))


def clear() -> bytes:
    picture = make_picture(SIZE[1], SIZE[0])
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return encoded(picture)


def forms(data: bytes, path: Path) -> list[Any]:
    path.write_bytes(data)
    return [str(path), data, Image.open(io.BytesIO(data)), {"bytes": data, "path": None}]


def observed(form: Any) -> torch.Tensor:
    return frame_patches(Preprocessor(SIZE, torch.device("cpu"))(form)[None])


def chatted(form: Any) -> torch.Tensor:
    chat = [{"role": "user", "content": [{"type": "image", "image": form}]}]
    return tiny_processor().apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", max_pixels=SIZE[0] * SIZE[1]
    )["pixel_values"]


def processed(form: Any) -> torch.Tensor:
    return tiny_processor()(images=[form], return_tensors="pt", max_pixels=SIZE[0] * SIZE[1])["pixel_values"]


def trained(form: Any) -> torch.Tensor:
    content = [{"type": "image", "image": form}, {"type": "text", "text": "?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]}
    limits = Limits(max_tokens=100, max_pixels=SIZE[0] * SIZE[1])
    writer = TokenWriter(tiny_processor(), tiny_config(), limits)
    pixels = writer.write(Sample(read_messages(row, Path("/")), "here")).pixel_values
    assert pixels is not None
    return pixels


@pytest.mark.parametrize("make", [turned, deep, clear])
def test_a_picture_has_the_same_pixels_through_every_entrance(make: Any, tmp_path: Path) -> None:
    path, data, opened, row = forms(make(), tmp_path / "picture")
    wanted = processed(path)
    assert wanted.std() > 0.1
    for form in (path, data, opened):
        for entrance in (processed, chatted, trained):
            assert torch.equal(entrance(form), wanted), (entrance, form)
        assert torch.allclose(observed(form), wanted, atol=1e-5)
    assert torch.equal(trained(row), wanted)
