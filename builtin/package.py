"""Put trained weights into the package: one safetensors file, the processor, the scores in the model card.

python -m builtin.package --weights runs/builtin/tuned --scores scores.json
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

CARD = """---
library_name: infinitevl
pipeline_tag: image-text-to-text
license: apache-2.0
tags:
- infinite_vl
- streaming
- gated-deltanet
- arxiv:2512.08829
---

# The built-in model of infinitevl

11.7 million parameters in the architecture of InfiniteVL: two blocks of one sliding-window layer (64
tokens) and three Gated DeltaNets, and a vision encoder of six blocks; pictures of 112 x 112 pixels, 16
tokens each. It exists so that the package can be tried, tested and understood on a laptop. It knows a
small world (emoji, signs in many fonts, digits, flags, coloured shapes, streams of these, a few facts)
and nothing else: on photographs it guesses.

Data: drawn from free packages of npm, PyPI and Debian, fetched by name and version; licences and
attributions stand in NOTICE. MNIST's training digits (usually stated CC-BY-SA-3.0) are among what it
learnt from. Held out for the test split: the drawings of another hand (EmojiOne), three font families,
strings by a hash rule, MNIST's test digits.

Training, from nothing, on one H200 in bfloat16 (recipes/builtin.yaml): 2.3 minutes in which every patch
names what is under it, 11.9 minutes of pictures, text and streams of 4 to 64 frames together, then 2.6
minutes of keyed recall with the vision encoder frozen (builtin/tune_streams.py). Compiling came on top.
Everything was chosen on the validation split.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Put trained weights into the package.")
    parser.add_argument(
        "--weights", type=Path, required=True, help="folder that `builtin.tune_streams` exported"
    )
    parser.add_argument("--scores", type=Path, help="JSON of `builtin.evaluate`")
    parser.add_argument("--tokenizer", type=Path, default=Path(".data/tokenizer.json"))
    parser.add_argument("--out", type=Path, default=Path("infinitevl/assets/builtin"))
    arguments = parser.parse_args()
    model = InfiniteVLForConditionalGeneration.from_pretrained(arguments.weights, dtype=torch.bfloat16)
    model.save_pretrained(arguments.out)
    save_processor(arguments.tokenizer, arguments.out)
    scores = json.loads(arguments.scores.read_text()) if arguments.scores else None
    (arguments.out / "README.md").write_text(CARD + (score_table(scores) if scores else ""))
    for file in arguments.out.iterdir():
        file.chmod(0o644)
    print(f"{arguments.out}: {sum(f.stat().st_size for f in arguments.out.iterdir()) / 1e6:.2f} MB")


def save_processor(tokenizer: Path, folder: Path) -> None:
    """The processor of every model of the small world."""
    pixels = FRAME_SIZE**2
    pictures = Qwen2VLImageProcessorPil(min_pixels=pixels, max_pixels=pixels)
    InfiniteVLProcessor(pictures, wrap_tokenizer(tokenizer), frame_size=FRAME_SIZE).save_pretrained(folder)


def score_table(scores: dict) -> str:
    """Scores as Markdown."""
    lines = [f"\n## Scores on the {scores['split']} split", ""]
    lines += ["| task | exact | with O = 0, I = 1 | samples |", "|---|---|---|---|"]
    lines += [
        f"| {r['task']} | {100 * r['score']:.1f} % | {100 * r['score_alike']:.1f} % | {r['samples']} |"
        for r in scores["results"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
