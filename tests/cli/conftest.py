"""A whole model folder, tiny and with random weights, and clips to watch."""

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
    )


def tiny_config(tokenizer):
    from infinitevl.config import InfiniteVLConfig

    ids = tokenizer.convert_tokens_to_ids
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32}
    return InfiniteVLConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        mrope_section=[2, 3, 3],
        sliding_window=24,
        num_linear_heads=2,
        num_linear_key_value_heads=2,
        linear_head_dim=16,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        bos_token_id=ids("<|endoftext|>"),
        eos_token_id=ids("<|im_end|>"),
        pad_token_id=ids("<|endoftext|>"),
        vision_config={**vision, "fullatt_block_indexes": [1]},
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
    from infinitevl.processing.processor.processor import InfiniteVLProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = byte_tokenizer()
    InfiniteVLForConditionalGeneration(tiny_config(tokenizer)).save_pretrained(folder)
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    InfiniteVLProcessor(pictures, tokenizer, frame_size=56).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "red.png"
    Image.new("RGB", (64, 48), "red").save(path)
    return str(path)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Two seconds at 8 frames a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(16):
            pixels = np.full((48, 64, 3), 15 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)
