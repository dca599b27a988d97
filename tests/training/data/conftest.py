"""A writer of tokens for the tiny model, and samples to write."""

import pytest
from PIL import Image

from infinitevl.training.data.messages import Sample
from infinitevl.training.data.tokens import Limits, TokenWriter
from tests.support import tiny_config, tiny_processor


@pytest.fixture
def writer():
    return TokenWriter(tiny_processor(), tiny_config(), Limits(max_tokens=400, max_pixels=56 * 84))


def said(role, *parts):
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "content": content}


def chat(*parts, answer="word A", system=""):
    first = [said("system", system)] if system else []
    return Sample([*first, said("user", *parts), said("assistant", answer)], "test, row 1")


def picture(size=(84, 56), shade=90):
    return {"type": "image", "image": Image.new("RGB", size, (shade, 10, 200))}


def video(num_frames=4, fps=4.0, shade=30):
    frames = [Image.new("RGB", (56, 56), (shade * i % 256, 0, 0)) for i in range(num_frames)]
    return {"type": "video", "video": frames, "sample_fps": fps, "max_pixels": 56 * 56, "min_pixels": 784}
