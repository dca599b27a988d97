"""Rows made by hand in the form of each public source."""

from pathlib import Path

import pytest
from PIL import Image

from infinitevl.errors import InputError
from infinitevl.training.data.adapters import ADAPTERS
from infinitevl.training.data.source import Samples

PICTURE = Image.new("RGB", (28, 28))
URL = "https://pictures.example/boat.jpg"
FROM = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A boat."}]
ROLE = [
    {"from": None, "value": None, "role": "user", "content": "<image>What is it?"},
    {"from": None, "value": None, "role": "assistant", "content": "A boat."},
]
RATED = {"source": "vistext", "relevance_ratings": [5, 4], "relevance_min": 4}


def pair(user, assistant, **more):
    return {"user": user, "assistant": assistant, **more}


ROWS = {
    "FineVision": (
        "texts",
        {"images": [PICTURE], "texts": [pair("What?", "A boat."), pair("Red?", "No.")], **RATED},
    ),
    "FineVision, text": ("texts", {"images": [], "texts": [pair("2 + 2?", "4")], **RATED}),
    "The Cauldron": (
        "texts",
        {"images": [PICTURE, PICTURE], "texts": [pair("Same?", "Yes.", source="nlvr2")]},
    ),
    "Docmatix": (
        "texts",
        {
            "images": [PICTURE] * 3,
            "texts": [
                pair("Who signs?", "Ada.", source="PDFA key: 7"),
                pair("When?", "1843.", source="PDFA key: 7"),
            ],
        },
    ),
    "LLaVA-OneVision-1.5": (
        "llava_onevision",
        {"id": "7", "image": PICTURE, "conversations": FROM, "data_source": "coco"},
    ),
    "LLaVA-OneVision-1.5, roles": ("llava_onevision", {"id": "7", "image": PICTURE, "conversations": ROLE}),
    "LLaVA-OneVision-1.5, text": (
        "llava_onevision",
        {
            "image": None,
            "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}],
        },
    ),
    "LLaVA-OneVision-1.5, no place": (
        "llava_onevision",
        {"image": PICTURE, "conversations": [{"from": "human", "value": "What?"}, FROM[1]]},
    ),
    "LLaVA-Video-178K": (
        "llava_video",
        {"id": "7", "conversations": FROM, "data_source": "0_30_s_youtube_v0_1", "video": "videos/ytb_7.mp4"},
    ),
    "PixMo-Cap": ("pixmo_cap", {"image_url": URL, "caption": " A boat. ", "transcripts": ["it is a boat"]}),
    "PixMo-AskModelAnything": (
        "pixmo_qa",
        {"image_url": URL, "image_sha256": "0", "question": "What is it?", "answer": "A boat."},
    ),
    "PixMo-CapQA": (
        "pixmo_qa",
        {
            "image_url": URL,
            "question": "[USER] What? [ASSISTANT] A boat. [USER] Red? [ASSISTANT]",
            "answer": "No.",
        },
    ),
    "PixMo-Docs": (
        "pixmo_docs",
        {
            "image": PICTURE,
            "image_id": "7",
            "questions": {"question": ["Top?", "Sum?"], "answer": ["A", "7"]},
        },
    ),
}
READ_AS = {
    "FineVision": ["image What?", "A boat.", "Red?", "No."],
    "FineVision, text": ["2 + 2?", "4"],
    "The Cauldron": ["image image Same?", "Yes."],
    "Docmatix": ["image image image Who signs?", "Ada.", "When?", "1843."],
    "LLaVA-OneVision-1.5": ["image \nWhat is it?", "A boat."],
    "LLaVA-OneVision-1.5, roles": ["image What is it?", "A boat."],
    "LLaVA-OneVision-1.5, text": ["2 + 2?", "4"],
    "LLaVA-OneVision-1.5, no place": ["image What?", "A boat."],
    "LLaVA-Video-178K": ["video \nWhat is it?", "A boat."],
    "PixMo-Cap": ["image What does this picture show?", "A boat."],
    "PixMo-AskModelAnything": ["image What is it?", "A boat."],
    "PixMo-CapQA": ["image What?", "A boat.", "Red?", "No."],
    "PixMo-Docs": ["image Top?", "A", "Sum?", "7"],
}


def shown(message):
    return " ".join(part.get("text", part["type"]) for part in message["content"])


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_source_becomes_a_conversation(name, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/ytb_7.mp4").touch()
    adapter, row = ROWS[name]
    sample = Samples(name, [row], ADAPTERS[adapter], tmp_path)[0]
    assert [shown(message) for message in sample.messages] == READ_AS[name]
    assert [message["role"] for message in sample.messages] == ["user", "assistant"] * (
        len(READ_AS[name]) // 2
    )


def test_every_adapter_has_rows():
    assert {adapter for adapter, _ in ROWS.values()} == set(ADAPTERS)


@pytest.mark.parametrize(
    ("adapter", "row", "said"),
    [
        ("texts", {"images": []}, "boats, row 1, field texts: is missing"),
        ("texts", {"texts": [{"user": "?"}]}, "field texts[0].assistant: is missing"),
        (
            "llava_onevision",
            {"conversations": [{"from": "bot", "value": "?"}]},
            "conversations[0].from: is 'bot'",
        ),
        ("llava_video", {"conversations": FROM}, "field video: is missing"),
        ("llava_video", {"conversations": FROM, "video": "no.mp4"}, "no.mp4"),
        ("pixmo_cap", {"image_url": URL}, "field caption: is missing"),
        ("pixmo_qa", {"image_url": URL, "question": "[USER] a [USER] b", "answer": "c"}, "field question"),
        (
            "pixmo_docs",
            {"image": PICTURE, "questions": {"question": ["?"], "answer": []}},
            "1 questions, 0 answers",
        ),
    ],
)
def test_rows_of_another_form_are_refused_by_field(adapter, row, said):
    with pytest.raises(InputError) as error:
        Samples("boats", [row], ADAPTERS[adapter], Path("."))[0]
    assert said in str(error.value)
