"""The built-in model's school, rehearsed with tiny numbers: every step, a stop, the package."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

import infinitevl
from builtin.package import package, record
from builtin.pieces import PIECE, keep, take
from builtin.recall import thinned
from builtin.rehearsal import Sizes
from builtin.school import SECONDS, School, main, models_of
from builtin.sources import unpack
from builtin.timed import teach_for
from builtin.world.packs import small_pack_path

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "infinitevl" / "assets" / "builtin" / "tokenizer.json"


@pytest.fixture
def data(tmp_path):
    """The small pack of the package in the place of all splits."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        shutil.copy(small_pack_path(), folder / f"{split}.pack")
    shutil.copy(TOKENIZER, folder)
    return folder


def _school(tmp_path, data, **more) -> School:
    sizes = Sizes(samples=1, lengths=(4,))
    return School(tmp_path / "school", data, ROOT / "builtin" / "recipes", sizes=sizes, **more)


@pytest.mark.slow
def test_every_step_runs_and_what_they_made_is_packaged(tmp_path, data):
    assert _school(tmp_path, data).go("distill_layers")
    school = _school(tmp_path, data)
    assert school.go()
    stages = list(SECONDS)
    assert [name for name in school.finished if name in stages] == stages[stages.index("distill_logits") :]
    told = [json.loads(line) for line in (tmp_path / "school" / "school.jsonl").read_text().splitlines()]
    assert all(line["what"] == "done" for line in told)
    package(tmp_path / "school", ROOT / "builtin" / "recipes", TOKENIZER, tmp_path / "package")
    model, _ = infinitevl.load(tmp_path / "package", device="cpu", dtype=torch.float32)
    wanted, _ = infinitevl.load(tmp_path / "school" / "long_sft" / "model", device="cpu", dtype=torch.float32)
    pairs = zip(model.parameters(), wanted.parameters(), strict=True)
    assert all(torch.allclose(given, found, atol=2e-2, rtol=1e-2) for given, found in pairs)
    card = (tmp_path / "package" / "README.md").read_text()
    assert "| stage 3 | 4 |" in card and "| read, seen fonts |" in card
    record(tmp_path / "school", tmp_path / "benchmarks.jsonl")
    record(tmp_path / "school", tmp_path / "benchmarks.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "benchmarks.jsonl").read_text().splitlines()]
    assert {line["benchmark"] for line in lines} == {"builtin.school", "builtin.evaluate", "builtin.recall"}
    assert len({json.dumps(line) for line in lines}) == len(lines)
    assert str(tmp_path) not in (tmp_path / "package" / "adapter" / "adapter_config.json").read_text()


def test_without_data_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["school", "--tiny", "--data", str(tmp_path), "--folder", str(tmp_path / "x")]
    )
    with pytest.raises(SystemExit, match=r"^Error: .* lacks train\.pack, .*\. Build the data first") as error:
        main()
    assert error.value.__cause__ is not None and not (tmp_path / "x").exists()


def test_a_call_without_time_begins_nothing(tmp_path, data):
    school = _school(tmp_path, data, stop_after=5.0)
    assert not school.go()
    assert school.finished == []


def test_what_is_carried_lets_a_stage_go_on_elsewhere(tmp_path, data, monkeypatch):
    """The folder's name is the same in both places, as it is in the recipes that a checkpoint remembers."""

    def school(place: str, num_steps: int, **more) -> School:
        (tmp_path / place).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / place)
        recipes = ROOT / "builtin" / "recipes"
        return School(Path("runs"), data, recipes, sizes=Sizes(num_steps=num_steps), **more)

    assert school("here", 2).go("teacher_dense")
    here = school("here", 12)
    assert here.needed() == ["teacher_dense"]
    monkeypatch.setattr("builtin.school.teach_for", lambda *a: teach_for(*a[:3], 0.0))  # one step
    assert not here.go("teacher") and here.running == "teacher"
    here.keep(tmp_path / "carried", here.needed())
    take(tmp_path / "carried", tmp_path / "there" / "runs")
    there = school("there", 12)
    assert not (tmp_path / "there" / "runs" / "teacher_dense" / "model").exists()
    monkeypatch.setattr("builtin.school.teach_for", teach_for)
    assert there.go("teacher") and there.running is None and there.finished == ["teacher"]
    there.keep(tmp_path / "new", models_of(there.finished))
    take(tmp_path / "new", tmp_path / "here" / "runs")
    assert school("here", 12).go("student")


def test_pieces_come_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr("builtin.pieces.PIECE", 1000)
    folder = tmp_path / "school"
    (folder / "sft" / "model").mkdir(parents=True)
    (folder / "teacher" / "model").mkdir(parents=True)
    (folder / "sft.json").write_text("{}")
    (folder / "sft" / "model" / "w.safetensors").write_bytes(torch.randn(2000).numpy().tobytes())
    (folder / "teacher" / "model" / "w.safetensors").write_bytes(b"1")
    pieces = keep(folder, tmp_path / "pieces", models_of(["sft"]))
    assert len(pieces) > 5 and PIECE < 16 * 2**20
    take(tmp_path / "pieces", tmp_path / "back")
    found = sorted(
        path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*.*")
    )
    assert found == ["sft.json", "sft/model/w.safetensors"]
    name = "sft/model/w.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["../outside", "/outside", "link"])
def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path, name):
    member = tarfile.TarInfo(name)
    if name == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        archive.addfile(member)
    memory.seek(0)
    with (
        tarfile.open(fileobj=memory) as archive,
        pytest.raises(ValueError, match="below its folder"),
    ):
        unpack(archive, tmp_path / "folder")
    assert not list(tmp_path.rglob("outside"))


def test_norms_are_thinned_but_keep_their_ends():
    norms = [(number, [float(number)]) for number in range(1, 101)]
    kept = thinned(norms, 10)
    assert kept[0] == norms[0] and kept[-1] == norms[-1] and len(kept) <= 11
    assert thinned([(1, [])]) == []
