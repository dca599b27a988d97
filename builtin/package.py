"""Put a school's models into the package: stage 2, stage 3 as an adapter beside it, the processor, the card.

python -m builtin.package --school runs/builtin
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from builtin.card import records, write_card
from builtin.command import command
from builtin.vocabulary import wrap_tokenizer
from builtin.world.render import FRAME_SIZE
from infinitevl.errors import InputError
from infinitevl.model import adapters
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.processor.processor import InfiniteVLProcessor

MOST_BYTES = 34_000_000  # of weights; the tests' own come on top


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Put trained weights into the package.")
    parser.add_argument("--school", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--recipes", type=Path, default=Path("builtin/recipes"))
    parser.add_argument("--tokenizer", type=Path, default=Path(".data/tokenizer.json"))
    parser.add_argument("--out", type=Path, default=Path("infinitevl/assets/builtin"))
    parser.add_argument("--benchmarks", type=Path, default=Path("benchmarks/builtin.jsonl"))
    arguments = parser.parse_args()
    package(arguments.school, arguments.recipes, arguments.tokenizer, arguments.out)
    record(arguments.school, arguments.benchmarks)
    size = sum(file.stat().st_size for file in _files(arguments.out))
    print(f"{arguments.out}: {size / 1e6:.2f} MB")


def package(school: Path, recipes: Path, tokenizer: Path, out: Path) -> None:
    """Write everything that the package holds of the model into `out`.

    Raises:
        InputError: the school is not finished. ValueError: the weights are too large to be tracked.
    """
    if not (school / "long_sft" / "adapter").is_dir():
        raise InputError(f"{school} holds no finished school. Run `python -m builtin.school` first.")
    model = InfiniteVLForConditionalGeneration.from_pretrained(school / "sft" / "model", dtype=torch.bfloat16)
    model.save_pretrained(out)
    save_processor(tokenizer, out)
    adapter = school / "long_sft" / "adapter"
    shutil.rmtree(out / adapters.FOLDER, ignore_errors=True)
    (out / adapters.FOLDER).mkdir()
    shutil.copy(adapter / adapters.WEIGHTS, out / adapters.FOLDER)
    config = json.loads((adapter / adapters.CONFIG).read_text())
    config["base_model_name_or_path"] = None  # it would name a folder of whoever trained it
    (out / adapters.FOLDER / adapters.CONFIG).write_text(json.dumps(config, indent=2))
    (out / "README.md").write_text(write_card(school, recipes))
    for file in _files(out):
        file.chmod(0o644)
    weights = sum(file.stat().st_size for file in _files(out) if file.suffix == ".safetensors")
    if weights > MOST_BYTES:
        raise ValueError(
            f"{out} holds {weights / 1e6:.1f} MB of weights; at most {MOST_BYTES / 1e6:.0f} may be."
        )


def record(school: Path, path: Path) -> None:
    """Put what the school measured into the benchmarks, in the place of an older school's."""
    made = records(school)
    names = {line["benchmark"] for line in made}
    older = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [line for line in older if line["benchmark"] not in names]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in kept + made))


def save_processor(tokenizer: Path, folder: Path) -> None:
    """The processor of every model of the small world."""
    pixels = FRAME_SIZE**2
    pictures = Qwen2VLImageProcessorPil(min_pixels=pixels, max_pixels=pixels)
    InfiniteVLProcessor(pictures, wrap_tokenizer(tokenizer), frame_size=FRAME_SIZE).save_pretrained(folder)


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


if __name__ == "__main__":
    main()
