"""Rows of chat messages, and what is said about those that cannot be used."""

import json

import pytest
from PIL import Image

from infinitevl.errors import InputError
from infinitevl.training.data.source import Samples, open_samples

QUESTION = {"role": "user", "content": "What is it?"}
ANSWER = {"role": "assistant", "content": "A boat."}


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (28, 28)).save(tmp_path / name)
    return tmp_path


def write(folder, *rows, name="data.jsonl"):
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text(text + "\n")
    return open_samples(folder / name)


def asked(*parts, **row):
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER], **row}


def test_lines_become_samples_with_media_by_full_path(folder):
    picture = {"type": "image", "image": "sub/b.png", "max_pixels": 784}
    source = write(folder, {"messages": [QUESTION, ANSWER]}, asked(picture, {"type": "text", "text": "?"}))
    assert len(source) == 2
    assert source[0].messages[1] == {"role": "assistant", "content": [{"type": "text", "text": "A boat."}]}
    found = source[1].messages[0]["content"][0]
    assert found == {"type": "image", "image": str(folder / "sub/b.png"), "max_pixels": 784}
    assert source[1].where == f"{folder / 'data.jsonl'}, line 2"


def test_a_line_is_found_again_after_letters_of_several_bytes(folder):
    rows = [{"messages": [{"role": "user", "content": "é世界"}, ANSWER]}, {"messages": [QUESTION, ANSWER]}]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    source = open_samples(folder / "data.jsonl")
    assert source[1].messages[0]["content"][0]["text"] == "What is it?"
    assert source[0].messages[0]["content"][0]["text"] == "é世界"


def test_parts_without_a_path_take_the_next_of_the_rows_media(folder):
    row = asked({"type": "image"}, {"type": "image", "image": None}, images=["a.png", "sub/b.png"])
    names = [part["image"] for part in write(folder, row)[0].messages[0]["content"]]
    assert names == [str(folder / "a.png"), str(folder / "sub/b.png")]


def test_a_document_is_a_picture_for_each_page_in_the_order_of_numbers(folder):
    for page in (1, 2, 10):
        Image.new("RGB", (28, 28)).save(folder / "sub" / f"page{page}.png")
    (folder / "sub/b.png").unlink()
    pages = write(folder, asked({"type": "document", "document": "sub"}))[0].messages[0]["content"]
    assert [page["image"].rsplit("/", 1)[1] for page in pages] == ["page1.png", "page2.png", "page10.png"]


def test_a_file_of_several_pages_is_a_document(folder):
    first, *others = [Image.new("RGB", (28, 28), (shade, 0, 0)) for shade in (10, 20, 30)]
    first.save(folder / "pages.tiff", save_all=True, append_images=others)
    pages = write(folder, asked({"type": "document", "document": "pages.tiff"}))[0].messages[0]["content"]
    assert [page["image"].getpixel((0, 0))[0] for page in pages] == [10, 20, 30]


def test_a_json_list_and_a_saved_dataset_are_read_as_well(folder):
    datasets = pytest.importorskip("datasets")
    rows = [asked({"type": "image"}, images=["a.png"]), asked({"type": "text", "text": "?"}, images=None)]
    (folder / "data.json").write_text(json.dumps(rows))
    assert len(open_samples(folder / "data.json")) == 2
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": datasets.List(datasets.Image()),
        }
    )
    flat = {"messages": [[QUESTION, ANSWER]], "images": [[]]}
    datasets.Dataset.from_dict(flat, features=features).save_to_disk(folder / "saved")
    source = open_samples(folder / "saved")
    assert source[0].messages[0]["content"][0]["text"] == "What is it?"
    assert source[0].where.endswith("saved, row 1")


def test_pictures_of_a_dataset_arrive_in_memory(folder):
    datasets = pytest.importorskip("datasets")
    content = {"image": str(folder / "a.png"), "question": "What is it?"}
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    dataset = datasets.Dataset.from_list([content], features=features)
    source = Samples("boats", dataset, lambda row: asked({"type": "image"}, images=[row["image"]]), folder)
    assert source[0].messages[0]["content"][0]["image"].size == (28, 28)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 1, field row: is no JSON"),
        ("", "line 1, field row: is no JSON"),
        ([], "field row: is list; give an object"),
        ({"message": []}, "field messages: is missing; the row has ['message']"),
        ({"messages": []}, "field messages: is empty"),
        ({"messages": [QUESTION]}, "nothing to learn"),
        ({"messages": [{"role": "bot", "content": "?"}, ANSWER]}, "messages[0].role: is 'bot'; valid are"),
        ({"messages": [{"role": "user"}, ANSWER]}, "messages[0].content: is missing"),
        ({"messages": [QUESTION, {"role": "assistant", "content": ""}]}, "messages[1].content: the answer"),
        ({"messages": [QUESTION, ANSWER, {"role": "system", "content": "?"}]}, "messages[2].role"),
        (asked({"type": "sound"}), "messages[0].content[0].type: is 'sound'"),
        (asked({"type": "text", "text": 3}), "messages[0].content[0].text: is int; give str"),
        (asked({"type": "image", "image": "no.png"}), "messages[0].content[0].image: "),
        (asked({"type": "image", "image": ""}), "messages[0].content[0].image: "),
        (asked({"type": "video"}), "messages[0].content[0].video: is missing"),
        (asked({"type": "text", "text": "?"}, images=["a.png"]), "field images: 1 of them have no place"),
        (asked({"type": "document", "document": "paper.pdf"}), "paper.pdf"),
        (asked({"type": "document", "document": "empty"}), "content[0].document: has no pages"),
    ],
)
def test_errors_name_file_line_and_field(folder, row, said):
    (folder / "empty").mkdir()
    (folder / "paper.pdf").touch()
    with pytest.raises(InputError) as error:
        write(folder, row)[0]
    assert said in str(error.value)
    assert str(error.value).startswith(f"{folder / 'data.jsonl'}, line 1, field")


def test_files_and_forms_that_do_not_exist_are_refused(folder):
    with pytest.raises(InputError, match="does not exist"):
        open_samples(folder / "nothing.jsonl")
    with pytest.raises(InputError, match="valid are messages, sharegpt"):
        open_samples(folder / "a.png", "alpaca")
