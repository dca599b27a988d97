"""Rows as other programs write them are read; one that cannot be is skipped and counted, by name."""

import json

import pytest
from PIL import Image

from infinitevl.errors import InputError
from infinitevl.training.data.loading import BatchPlan, Shard
from infinitevl.training.data.messages import read_messages
from infinitevl.training.data.mixture import Mixture
from infinitevl.training.data.source import Samples, open_samples
from infinitevl.training.data.tokens import Limits, TokenWriter
from tests.processing.media import make_picture
from tests.support import tiny_config, tiny_processor

ANSWER = {"role": "assistant", "content": "Red."}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    Image.new("RGB", (56, 56), "blue").save(tmp_path / "b.png")
    return tmp_path


def read(folder, row, form="messages"):
    (folder / "rows.json").write_text(json.dumps([row]))
    return open_samples(folder / "rows.json", form)[0].messages


def kinds(messages):
    return [[part["type"] for part in message["content"]] for message in messages]


@pytest.mark.parametrize(
    "images", [["a.png", "b.png"], [{"path": "a.png"}, {"path": "b.png", "bytes": None}]]
)
def test_places_in_the_text_take_the_pictures_beside_it_in_order(folder, images):
    question = {"role": "user", "content": "<image>First, and <image> what?"}
    found = read(folder, {"messages": [question, ANSWER], "images": images})
    assert kinds(found) == [["image", "text", "image", "text"], ["text"]]
    pictures = [part["image"] for part in found[0]["content"] if part["type"] == "image"]
    assert pictures == [str(folder / "a.png"), str(folder / "b.png")]
    assert found[0]["content"][1]["text"] == "First, and "


def test_places_in_a_part_of_text_and_one_picture_by_itself_are_read(folder):
    question = {"role": "user", "content": [{"type": "text", "text": "<image>\nWhat?"}]}
    for beside in ({"images": "a.png"}, {"image": "a.png"}, {"image": ["a.png"]}):
        assert kinds(read(folder, {"messages": [question, ANSWER], **beside})) == [
            ["image", "text"],
            ["text"],
        ]


def test_a_video_s_place_takes_the_video(folder):
    (folder / "v.mp4").write_bytes(b"")
    question = {"role": "user", "content": "<video>What happens?"}
    found = read(folder, {"messages": [question, ANSWER], "videos": ["v.mp4"]})
    assert kinds(found) == [["video", "text"], ["text"]]


def test_words_that_look_like_places_stay_words_where_media_have_parts_or_there_are_none(folder):
    said = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is <image> in HTML?"}],
    }
    found = read(folder, {"messages": [said, ANSWER], "images": ["a.png"]})
    assert kinds(found) == [["image", "text"], ["text"]]
    found = read(folder, {"messages": [{"role": "user", "content": "What is <image>?"}, ANSWER]})
    assert found[0]["content"] == [{"type": "text", "text": "What is <image>?"}]
    told = {"role": "assistant", "content": "It says <image>."}
    question = {"role": "user", "content": "<image>?"}
    assert kinds(read(folder, {"messages": [question, told], "image": "a.png"}))[1] == ["text"]


def test_llava_s_one_column_is_read_and_a_missing_one_is_told_with_those_that_are_there(folder):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
    found = read(folder, {"image": "a.png", "conversations": turns}, "sharegpt")
    assert kinds(found) == [["image", "text"], ["text"]]
    with pytest.raises(InputError, match="picture"):
        read(folder, {"picture": "a.png", "conversations": turns}, "sharegpt")
    with pytest.raises(InputError, match="query"):
        read(folder, {"query": "<image>What?", "response": "Red."})
    with pytest.raises(InputError, match="no place"):
        read(folder, {"messages": [{"role": "user", "content": "What?"}, ANSWER], "images": ["a.png"]})


def row(text="What?", **settings):
    picture = {"type": "image", "image": "a.png", **settings}
    content = [picture, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}, ANSWER]}


BAD = {
    "half a character": row("What? \ud83d"),
    "the field messages[0].content[0].max_pixels": row(max_pixels="12544"),
    "nan": row(max_pixels=float("nan")),
    "infinite": row(min_pixels=float("inf")),
    "negative": row(max_pixels=-1),
    "a fraction": row(max_pixels=0.5),
    "true": row(max_pixels=True),
    "a list": row(resized_height=[28]),
    "a list for a row": ["x"],
    "a text for a row": "x",
    "none": None,
    "messages that are a text": {"messages": "x"},
    "a message that is a text": {"messages": ["x"]},
    "a role that is a number": {"messages": [{"role": 3, "content": "x"}, ANSWER]},
    "a picture that is a number": {"messages": row()["messages"], "images": 3},
    "a path of half a character": row(image="\ud83d.png"),
    "a very long path": row(image="x" * 5000),
    "a null byte": row(image="a\0.png"),
    "a folder": row(image="."),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_skipped_and_counted(folder, name):
    rows = [row(), BAD[name], row()]
    source = Samples("rows", rows, lambda each: each, folder)
    writer = TokenWriter(tiny_processor(), tiny_config(), Limits(200))
    shard = Shard(Mixture([source], 0), writer, BatchPlan(200), num_epochs=1)
    names = [name for batch in shard for name in batch.names]
    assert sorted(names) == ["rows, row 1", "rows, row 3"]
    assert list(shard.skipped) == ["rows, row 2"]
    assert all(reason.isprintable() for reason in shard.skipped.values())
    json.dumps(shard.skipped).encode()


def test_settings_that_say_nothing_and_whole_numbers_of_another_writer_are_read(folder):
    part = read(folder, row(max_pixels=12544.0, min_pixels=None))[0]["content"][0]
    assert part["max_pixels"] == 12544 and type(part["max_pixels"]) is int and "min_pixels" not in part


def test_errors_of_a_caller_s_own_function_name_the_row(folder):
    source = Samples("rows", [row()], lambda each: each["nothing"], folder)
    with pytest.raises(InputError, match="rows, row 1, KeyError: 'nothing'"):
        source[0]


def test_settings_that_a_table_filled_with_none_are_absent(tmp_path):
    import datasets

    def row(**settings):
        parts = [{"type": "video", "video": ["a.png", "a.png"], **settings}, {"type": "text", "text": "?"}]
        return {
            "messages": [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
            ]
        }

    make_picture().save(tmp_path / "a.png")
    datasets.Dataset.from_list([row(fps=2.0), row(num_frames=2)]).save_to_disk(tmp_path)
    source = open_samples(tmp_path)
    first, second = (source[index].messages[0]["content"][0] for index in range(2))
    assert {key: first[key] for key in set(first) - {"type", "video"}} == {"fps": 2.0}
    assert {key: second[key] for key in set(second) - {"type", "video"}} == {"nframes": 2}


def test_a_misspelt_setting_of_a_row_is_refused(tmp_path):
    parts = [{"type": "image", "image": make_picture(), "max_pixel": 3136}, {"type": "text", "text": "?"}]
    row = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A"}],
    }
    with pytest.raises(InputError, match=r"messages\[0\].content\[0\].max_pixel: .*did you mean max_pixels"):
        read_messages(row, tmp_path)
