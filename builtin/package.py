"""Put trained weights into the package: one safetensors file, the processor, the scores in the model card.

python -m builtin.package --weights runs/builtin/model --scores scores.json
"""

import argparse
import json
from pathlib import Path

import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from builtin.vocabulary import wrap_tokenizer
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.processor import InfiniteVLProcessor
from infinitevl.scenes.render import FRAME_SIZE


def main() -> None:
    parser = argparse.ArgumentParser(description="Put trained weights into the package.")
    parser.add_argument(
        "--weights", type=Path, required=True, help="folder that `builtin.train --export` wrote"
    )
    parser.add_argument("--scores", type=Path, help="JSON of `builtin.evaluate`")
    parser.add_argument("--tokenizer", type=Path, default=Path(".data/tokenizer.json"))
    parser.add_argument("--out", type=Path, default=Path("infinitevl/assets/builtin"))
    arguments = parser.parse_args()
    model = InfiniteVLForConditionalGeneration.from_pretrained(arguments.weights, dtype=torch.bfloat16)
    model.save_pretrained(arguments.out)
    pixels = FRAME_SIZE**2
    pictures = Qwen2VLImageProcessorPil(min_pixels=pixels, max_pixels=pixels)
    InfiniteVLProcessor(pictures, wrap_tokenizer(arguments.tokenizer), frame_size=FRAME_SIZE).save_pretrained(
        arguments.out
    )
    if arguments.scores:
        card = arguments.out / "README.md"
        card.write_text(
            card.read_text().rstrip() + "\n\n" + score_table(json.loads(arguments.scores.read_text()))
        )
    print(f"{arguments.out}: {sum(f.stat().st_size for f in arguments.out.iterdir()) / 1e6:.2f} MB")


def score_table(scores: dict) -> str:
    """Scores as Markdown."""
    lines = [f"## Scores ({scores['split']} split)", "", "| task | right | of |", "|---|---|---|"]
    lines += [f"| {r['task']} | {100 * r['score']:.1f} % | {r['samples']} |" for r in scores["results"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
