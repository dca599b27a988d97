"""LLaMA-Factory's sharegpt form."""

import json

import pytest
from PIL import Image

from infinitevl.errors import InputError
from infinitevl.training.data.sharegpt import ShareGPT
from infinitevl.training.data.source import open_samples

HUMAN = {"from": "human", "value": "<image><image>\nWhich is <b>larger</b>?"}
GPT = {"from": "gpt", "value": "The second <image>."}


def text(value):
    return {"type": "text", "text": value}


def test_a_row_becomes_messages_with_pictures_where_the_text_says():
    row = ShareGPT()({"conversations": [HUMAN, GPT], "images": ["a.png", "b.png"], "system": "Be brief."})
    assert row["images"] == ["a.png", "b.png"]
    assert row["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, text("\nWhich is <b>larger</b>?")],
        },
        {"role": "assistant", "content": "The second <image>."},
    ]


def test_own_names_of_columns_and_roles_are_those_of_dataset_info():
    columns = {"messages": "messages", "videos": "clips"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    names = ShareGPT(**columns, **tags)
    turns = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "This."}]
    row = names({"messages": turns, "clips": "a.mp4"})
    assert row["videos"] == ["a.mp4"]
    assert row["messages"][0]["content"] == [{"type": "video"}, text("What?")]


def test_calls_and_what_they_gave_take_the_form_that_qwen_reads():
    turns = [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": "{}"}]
    turns += [{"from": "observation", "value": "rain"}, {"from": "gpt", "value": "It rains."}]
    messages = ShareGPT()({"conversations": turns})["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[1]["content"] == "<tool_call>\n{}\n</tool_call>"
    assert messages[2]["content"] == [text("<tool_response>\nrain\n</tool_response>")]


def test_a_file_of_the_published_codes_form_is_read(tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    rows = [{"conversations": [{"from": "human", "value": "<image>What?"}, GPT], "images": ["a.png"]}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    sample = open_samples(tmp_path / "data.json", "sharegpt")[0]
    assert sample.where == f"{tmp_path / 'data.json'}, entry 1"
    assert sample.messages[0]["content"][0]["image"] == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "field conversations: is missing"),
        ({"conversations": [HUMAN, GPT]}, "field images: 0 for 2 <image> in the questions"),
        ({"conversations": [HUMAN, GPT], "images": ["a.png"] * 3}, "field images: 3 for 2 <image>"),
        ({"conversations": [{"from": "bot", "value": "?"}]}, "conversations[0].from: is 'bot'; valid are"),
        ({"conversations": [{"from": "human"}]}, "conversations[0].value: is missing"),
        ({"conversations": [GPT], "tools": "[{}]"}, "field tools"),
        ({"conversations": [{"from": "system", "value": "a"}, GPT], "system": "b"}, "field system"),
    ],
)
def test_errors_name_the_field(row, said):
    with pytest.raises(InputError) as error:
        ShareGPT()(row)
    assert said in str(error.value)
