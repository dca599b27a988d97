"""A small tokenizer with Qwen's special tokens, and a processor around it."""

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.processing.processor.processor import InfiniteVLProcessor
from tests.processing.vocabulary import small_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return small_tokenizer()


@pytest.fixture
def processor(tokenizer: PreTrainedTokenizerFast) -> InfiniteVLProcessor:
    size = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}
    return InfiniteVLProcessor(Qwen2VLImageProcessorPil(size=size), tokenizer)
