"""A folder of weights is whole or what it was before, and a model without values is told from one with."""

import errno
import os
from pathlib import Path

import pytest
import torch
import transformers.modeling_utils

from infinitevl import ChatSession, CheckpointError, InputError, StreamSession
from infinitevl.files import _part_path
from tests.support import tiny_config, tiny_model, tiny_processor

MODEL = type(tiny_model())
SIZES = {"one file": "5GB", "shards": "50KB"}


def holds(folder: Path, seed: int) -> bool:
    pairs = zip(MODEL.from_pretrained(folder).parameters(), tiny_model(seed=seed).parameters(), strict=True)
    return all(torch.equal(loaded, wanted) for loaded, wanted in pairs)


def meta_model():
    with torch.device("meta"):
        return MODEL(tiny_config())


@pytest.fixture(params=[0, 1, 3])
def full_disk(request, monkeypatch):
    """Call it: from then on the disk is full after so many weight files."""
    write, left = transformers.modeling_utils.safe_save_file, [request.param]

    def save_file(tensors, filename, **kwargs):
        if not left[0]:
            Path(filename).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        write(tensors, filename, **kwargs)

    return lambda: monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", save_file)


def test_a_full_disk_leaves_the_older_model_whole(full_disk, tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path, max_shard_size="50KB")
    before = sorted(os.listdir(tmp_path))
    full_disk()
    with pytest.raises(CheckpointError, match="No space left"):
        tiny_model(seed=2).save_pretrained(tmp_path, max_shard_size="20KB")
    assert sorted(os.listdir(tmp_path)) == before and holds(tmp_path, 1)


def test_a_full_disk_leaves_no_model_in_a_new_folder(full_disk, tmp_path):
    full_disk()
    with pytest.raises(CheckpointError, match="No space left"):
        tiny_model().save_pretrained(tmp_path / "new", max_shard_size="50KB")
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize("first", SIZES)
@pytest.mark.parametrize("second", SIZES)
def test_a_second_save_takes_the_place_of_the_first(first, second, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "README.md").write_text("mine")
    tiny_model(seed=1).save_pretrained(tmp_path, max_shard_size=SIZES[first])
    tiny_model(seed=2).save_pretrained(tmp_path, max_shard_size=SIZES[second])
    assert holds(tmp_path, 2)
    whole, index = (tmp_path / "model.safetensors"), (tmp_path / "model.safetensors.index.json")
    assert (whole.exists(), index.exists()) == (second == "one file", second == "shards")
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "README.md").read_text() == "mine"


def test_a_variant_stands_beside_the_weights(tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path)
    tiny_model(seed=2).save_pretrained(tmp_path, True, None, False, "50KB", variant="other")
    assert holds(tmp_path, 1)
    assert torch.equal(
        MODEL.from_pretrained(tmp_path, variant="other").lm_head.weight, tiny_model(seed=2).lm_head.weight
    )


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    part = _part_path(tmp_path / "aside")
    part = part.with_name(part.name.replace(f"-{os.getpid()}-", "-999999999-"))
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    tiny_model().save_pretrained(tmp_path)
    assert not part.exists() and holds(tmp_path, 0)


def test_a_model_on_the_meta_device_is_refused_by_name(tmp_path):
    model, ids = meta_model(), torch.tensor([[300, 301]])
    calls = {
        "forward": lambda: model(ids.to("meta")),
        "ids with values": lambda: model(ids),
        "a mask": lambda: model(ids.to("meta"), attention_mask=torch.ones_like(ids)),
        "session": lambda: StreamSession(model, tiny_processor()),
        "chat": lambda: ChatSession(model, tiny_processor()),
        "save": lambda: model.save_pretrained(tmp_path / "out"),
    }
    for call in calls.values():
        with pytest.raises(CheckpointError, match=r"weight .* has no values"):
            call()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="meta device"):
        tiny_model()(ids.to("meta"))


def test_given_weights_save_a_model_that_has_none_of_its_own(tmp_path):
    meta_model().save_pretrained(tmp_path, state_dict=tiny_model(seed=3).state_dict())
    assert holds(tmp_path, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_finite_weights_load_and_one_nan_is_found(dtype, tmp_path):
    model = tiny_model().to(dtype)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.finfo(dtype).max / 2)
    model.save_pretrained(tmp_path)
    MODEL.from_pretrained(tmp_path, dtype="auto")
    for value in (torch.nan, torch.inf, -torch.inf):
        with torch.no_grad():
            model.lm_head.weight[3, 5] = value
        model.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="NaN or infinities"):
            MODEL.from_pretrained(tmp_path, dtype="auto")
