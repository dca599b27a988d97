"""Models by name: what cannot be opened is told at once, and what can be opens without noise."""

import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers

from infinitevl.engine.loading import load
from infinitevl.errors import CheckpointError, InputError
from infinitevl.model.opening import builtin_folder, place_of


@pytest.fixture(params=["told to be offline", "no network"])
def no_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = request.param == "told to be offline"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_hub")
def test_a_name_that_was_never_downloaded_is_refused_at_once(caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="cannot be reached"):
        load("nobody/nothing", device="cpu")
    assert time.monotonic() - started < 10 and "Retry" not in caplog.text


@pytest.mark.usefixtures("no_hub")
def test_a_name_that_was_downloaded_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--model"
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    shutil.copy(builtin_folder() / "config.json", folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert place_of("somebody/model") == str(folder)


@pytest.mark.parametrize("name", ["no/such/model", "..", "a b/c"])
@pytest.mark.usefixtures("no_hub")
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError):
        load(name, device="cpu")


@pytest.mark.parametrize(
    "wrong",
    [{"device": "gpu"}, {"device": "cuda:99"}, {"device": 1.5}, {"dtype": "bf16"}, {"dtype": torch.int8}],
)
def test_a_device_or_dtype_that_cannot_be_used_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        load(**{"device": "cpu", **wrong})


def test_the_built_in_model_loads_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    was_shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.enable_progress_bar()
    try:
        load(device="cpu")
        assert transformers.utils.logging.is_progress_bar_enabled()
    finally:
        if not was_shown:
            transformers.utils.logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")
