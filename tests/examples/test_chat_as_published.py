"""The published model card's calls work as they stand, and so does transformers' pipeline."""

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from infinitevl.errors import InputError
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from tests.support import tiny_model, tiny_processor

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat_as_published.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as published ones are: flat config, old habits, Qwen's processor files."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    frames = np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3), dtype=np.uint8)
    for name, frame in zip(("a.png", "b.png"), frames, strict=False):
        Image.fromarray(frame).save(folder / name)
    with av.open(str(folder / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return folder


def test_the_published_calls_work_in_their_order(folder, media):
    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    files = (str(media / "a.png"), str(media / "b.png"), f"file://{media / 'v.mp4'}")
    answers = example.main(str(folder), *files)
    assert len(answers) == 3 and all(isinstance(answer, str) for answer in answers)


def test_a_pipeline_answers_as_generate_does(folder, media):
    ask = pipeline("image-text-to-text", model=str(folder), dtype=torch.float32, device="cpu")
    assert isinstance(ask.processor, InfiniteVLProcessor)
    content = [{"type": "image", "image": str(media / "a.png")}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": content}]
    settings = {"generate_kwargs": {"do_sample": False}, "return_full_text": False}
    given = ask(text=messages, max_new_tokens=5, **settings)[0]["generated_text"]
    with pytest.raises(InputError, match="generate_kwargs"):  # the pipeline would drop it in silence
        ask(text=messages, max_new_tokens=5, do_sample=False)
    inputs = ask.processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    out = tiny_model().generate(**inputs, max_new_tokens=5, do_sample=False)
    new = out[0, inputs["input_ids"].shape[1] :]
    assert given == ask.processor.tokenizer.decode(new, skip_special_tokens=True)
