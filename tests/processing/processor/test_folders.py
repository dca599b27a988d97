"""A processor comes out of every folder that a published model may be in, and no code of the folder runs."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import infinitevl
from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import CheckpointError, InfiniteVLError
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.processing.prompt.template import CHAT_TEMPLATE
from tests.processing.media import make_picture
from tests.processing.vocabulary import small_tokenizer

PUBLISHED = Path(__file__).parents[2] / "data" / "published_4b"
EVIL = "raise RuntimeError('code of the folder ran')\n"
QWEN_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% endfor %}"


@pytest.fixture
def published(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder of the published form, with remote code that must never run."""
    tokenizer.save_pretrained(tmp_path)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((PUBLISHED / name).read_text())
    edit(
        tmp_path / "tokenizer_config.json",
        tokenizer_class="Qwen2Tokenizer",
        processor_class="Qwen2_5_VLProcessor",
    )
    for name in ("configuration_infinitevl.py", "modeling_infinitevl.py", "processing_infinitevl.py"):
        (tmp_path / name).write_text(EVIL)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | changes))


def check(processor: Any) -> None:
    assert type(processor) is InfiniteVLProcessor
    assert type(processor.image_processor) is Qwen2VLImageProcessorPil
    limits = processor.image_processor.size
    assert (limits["shortest_edge"], limits["longest_edge"]) == (3136, 12845056)
    assert processor.frame_size == 448
    inputs = processor(text="<|image_pad|>", images=[make_picture(56, 56)], return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 4) and inputs["pixel_values"].shape == (16, 1176)


@pytest.mark.parametrize(
    "name", ["Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2_5_VLImageProcessor"]
)
@pytest.mark.parametrize("trust", [True, False])
def test_a_published_folder_gives_our_processor_through_both_doors(
    published: Path, name: str, trust: bool
) -> None:
    edit(published / "preprocessor_config.json", image_processor_type=name)
    check(InfiniteVLProcessor.from_pretrained(published, trust_remote_code=trust))
    check(AutoProcessor.from_pretrained(str(published), trust_remote_code=trust))


@pytest.mark.parametrize("trust", [True, False])
def test_no_code_of_a_folder_runs_whatever_its_files_name(published: Path, trust: bool) -> None:
    own = {"AutoProcessor": "processing_infinitevl.Evil", "AutoImageProcessor": "processing_infinitevl.Evil"}
    edit(published / "preprocessor_config.json", auto_map=own, processor_class="Evil")
    edit(published / "processor_config.json", auto_map=own, processor_class="Evil")
    edit(
        published / "tokenizer_config.json", auto_map={"AutoTokenizer": ["processing_infinitevl.Evil", None]}
    )
    check(InfiniteVLProcessor.from_pretrained(published, trust_remote_code=trust))
    check(AutoProcessor.from_pretrained(published, trust_remote_code=trust))


def test_the_newer_form_of_the_size_is_read(published: Path) -> None:
    settings = json.loads((published / "preprocessor_config.json").read_text())
    least, most = settings.pop("min_pixels"), settings.pop("max_pixels")
    for size in (
        {"shortest_edge": least, "longest_edge": most},
        {"min_pixels": least, "max_pixels": most},
    ):
        (published / "preprocessor_config.json").write_text(json.dumps({**settings, "size": size}))
        check(InfiniteVLProcessor.from_pretrained(published))
    (published / "preprocessor_config.json").write_text(json.dumps(settings))
    assert InfiniteVLProcessor.from_pretrained(published).image_processor.size["shortest_edge"] == 3136


def test_limits_that_a_folder_leaves_out_are_the_published_ones_whatever_others_did(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"shortest_edge": 1, "longest_edge": 10_000}
    monkeypatch.setattr(Qwen2VLImageProcessorPil, "size", own)  # some versions change it in a call
    settings = json.loads((published / "preprocessor_config.json").read_text())
    del settings["min_pixels"], settings["max_pixels"]
    (published / "preprocessor_config.json").write_text(json.dumps(settings))
    check(InfiniteVLProcessor.from_pretrained(published))
    check(InfiniteVLProcessor.from_pretrained(published))


def test_a_video_preprocessor_file_changes_nothing(published: Path) -> None:
    edit(
        published / "video_preprocessor_config.json",
        video_processor_type="Qwen2VLVideoProcessor",
        patch_size=99,
    )
    check(InfiniteVLProcessor.from_pretrained(published))


@pytest.mark.parametrize("place", ["chat_template.json", "chat_template.jinja", "tokenizer_config.json"])
def test_the_chat_template_of_a_folder_is_used(published: Path, place: str) -> None:
    assert InfiniteVLProcessor.from_pretrained(published).chat_template == CHAT_TEMPLATE
    if place.endswith("json"):
        edit(published / place, chat_template=QWEN_TEMPLATE)
    else:
        (published / place).write_text(QWEN_TEMPLATE)
    processor = InfiniteVLProcessor.from_pretrained(published)
    assert processor.apply_chat_template([{"role": "user", "content": ""}]) == "<|im_start|>user\n"


def test_the_number_of_pixels_and_the_frame_size_can_be_chosen(published: Path) -> None:
    processor = AutoProcessor.from_pretrained(published, min_pixels=784, max_pixels=50_000, frame_size=224)
    assert processor.image_processor.size["longest_edge"] == 50_000 and processor.frame_size == 224
    check(InfiniteVLProcessor.from_pretrained(published))


def test_a_saved_processor_comes_back_equal(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    look = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 784, "longest_edge": 12544}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    saved = InfiniteVLProcessor(look, tokenizer, chat_template=QWEN_TEMPLATE, frame_size=112)
    saved.save_pretrained(tmp_path)
    InfiniteVLConfig().save_pretrained(tmp_path)
    picture = make_picture(300, 200)
    expected = saved(text="a<|image_pad|>", images=picture, return_tensors="pt")
    for loaded in (InfiniteVLProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is InfiniteVLProcessor
        assert loaded.frame_size == 112 and loaded.chat_template == QWEN_TEMPLATE
        inputs = loaded(text="a<|image_pad|>", images=picture, return_tensors="pt")
        assert all(torch.equal(inputs[name], value) for name, value in expected.items())
    loaded.save_pretrained(tmp_path / "again")
    again = InfiniteVLProcessor.from_pretrained(tmp_path / "again")
    assert again.to_dict() == loaded.to_dict()


def test_a_disk_that_fills_up_leaves_the_older_files_as_they_were(
    tmp_path: Path, processor: InfiniteVLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self: InfiniteVLProcessor, path: str) -> None:
        Path(path).write_text("{ half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(InfiniteVLProcessor, "to_json_file", full)
    processor.frame_size = 56
    with pytest.raises(InfiniteVLError, match="No space left"):
        processor.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_saved_processor_needs_no_model_config_to_be_found_by_its_name(
    tmp_path: Path, processor: InfiniteVLProcessor
) -> None:
    processor.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is InfiniteVLProcessor


def test_loading_does_not_change_the_defaults_of_transformers(published: Path) -> None:
    before = dict(Qwen2VLImageProcessorPil.size)
    InfiniteVLProcessor.from_pretrained(published, max_pixels=4000)
    assert dict(Qwen2VLImageProcessorPil.size) == before


@pytest.mark.parametrize("missing", ["preprocessor_config.json", "tokenizer.json"])
def test_a_folder_without_a_processor_is_an_error_that_names_it(published: Path, missing: str) -> None:
    (published / missing).unlink()
    with pytest.raises(CheckpointError, match=published.name):
        InfiniteVLProcessor.from_pretrained(published)
    (published / missing).write_text("{ broken")
    with pytest.raises(CheckpointError, match=published.name):
        InfiniteVLProcessor.from_pretrained(published)


def test_other_models_still_go_their_own_way(tmp_path: Path) -> None:
    small_tokenizer().save_pretrained(tmp_path)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), PreTrainedTokenizerFast)
    with pytest.raises(OSError):
        AutoProcessor.from_pretrained(tmp_path / "nothing")
    assert infinitevl.InfiniteVLProcessor is InfiniteVLProcessor


def test_torchvision_is_never_imported(published: Path) -> None:
    program = f"""
import sys
sys.modules["torchvision"] = None
from transformers import AutoProcessor
import infinitevl
import numpy as np
processor = AutoProcessor.from_pretrained({str(published)!r}, trust_remote_code=True)
processor.turn_inputs([{{"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}}])
print(type(processor).__name__, "httpx" in sys.modules, "av" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == "InfiniteVLProcessor" and ran.stdout.split()[2] == "False"
