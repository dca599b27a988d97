"""Numbers that a rewrite must not change: losses of every stage, logits, a state, answers of the engine.

    python -m tests.recorded.values                 # print them, as JSON
    python -m tests.recorded.values --write FILE    # record them

`recorded.json` was written before the package was restructured (commit 4a2dfaf) on two CPU cores with torch
2.13, and its `answers_cuda` on an H200 with torch 2.11. A commit that changes one of them says why.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from builtin import stages as small
from builtin.world.packs import small_pack_path
from infinitevl import StreamSession, load
from infinitevl.training.recipes import read_recipe
from infinitevl.training.stage import teach
from infinitevl.training.training_log import LOG, losses
from tests.support import DATA, random_frame, small_model, tiny_model, tiny_processor
from tests.training.stages import TEACHING, write_recipe, write_world

RECORDED = Path(__file__).with_name("recorded.json")
STEPS = 20
# Two batches a step, as in the recipes of the built-in model, with few pictures.
DRAWS = [
    {"num_pictures": 12, "buckets": {"stream4": 1, "keyed4": 1}},
    {"num_pictures": 8, "buckets": {"stream8": 1}, "buckets_at_end": {"stream4": 1}},
]
PROMPT = (
    "input_ids",
    "pixel_values",
    "pixel_values_videos",
    "image_grid_thw",
    "video_grid_thw",
    "second_per_grid_ts",
)
QUESTIONS = ("What does the sign say?", "What was on the first sign?", "What do you see now?")


def stage_losses(folder: Path, scenes: bool) -> dict[str, list[float]]:
    """The loss of 20 steps of every stage, on rows of a file or on the small world."""
    world = write_world(folder / "world")
    changes: dict[str, Any] = {"num_steps": STEPS, "log_every": 1, "save_every": 100}
    if scenes:
        changes["data"] = {"scenes": {"pack": str(small_pack_path()), "draws": DRAWS}}
    found = {}
    for stage in TEACHING:
        path = write_recipe(world, stage, folder / stage, **changes)
        small.teach(small.read_stage(path)) if scenes else teach(read_recipe(path))
        found[stage] = [loss for _, loss in losses(folder / stage / LOG)]
    return found


@torch.no_grad()
def logits_of_the_vectors() -> dict[str, list[float]]:
    """Fingerprints of the logits that the reference vectors' prompts give."""
    model, vectors = small_model(), load_file(DATA / "small" / "vectors.safetensors")
    mixed = model(**{name: vectors[name] for name in PROMPT}, use_cache=False).logits
    text = model(input_ids=vectors["text_input_ids"], use_cache=False).logits
    return {"mixed": fingerprint(mixed), "text": fingerprint(text)}


@torch.no_grad()
def state_after_a_stream() -> list[list[float]]:
    """Fingerprints of a state's tensors, in order: a kept turn, a frame that waits."""
    session = StreamSession(tiny_model(), tiny_processor(), mode="video", keep_turns=True)
    for index in range(13):
        session.observe(random_frame(index), at=0.7 * index)
    session.ask("what?", max_new_tokens=4)
    session.observe(random_frame(20), at=30.0)
    return [fingerprint(tensor) for tensor in session.state.tensors().values()]


def answers(device: str) -> list[str]:
    """What the built-in model says about a sign, a red square and a blue disc that pass by."""
    model, processor = load(device=device, dtype=torch.float32)
    stream = StreamSession(model, processor)
    found = []
    for second in range(60):
        stream.observe(_frame(second), at=second)
        if second in (2, 30, 59):
            found += [stream.ask(question, max_new_tokens=24) for question in QUESTIONS]
    return found


def _frame(second: int) -> Image.Image:
    if second < 3:
        return Image.open(DATA.parents[1] / "examples" / "sign.png").convert("RGB")
    picture = Image.new("RGB", (224, 224), "white")
    draw = ImageDraw.Draw(picture)
    left = 10 + 2 * (second % 40)
    if second % 2:
        draw.rectangle((left, 60, left + 90, 150), fill="red")
    else:
        draw.ellipse((left, 60, left + 90, 150), fill="blue")
    return picture


def fingerprint(tensor: Tensor) -> list[float]:
    """Sum, norm and 13 entries of a tensor, in float64: what changes a tensor changes one of these."""
    flat = tensor.detach().double().flatten().cpu()
    if not len(flat):
        return []
    picked = torch.linspace(0, len(flat) - 1, 13).long()
    return [flat.sum().item(), flat.norm().item(), *flat[picked].tolist()]


def measure() -> dict[str, Any]:
    """All that a CPU can say."""
    with tempfile.TemporaryDirectory() as folder:
        rows = stage_losses(_new(Path(folder) / "rows"), scenes=False)
        scenes = stage_losses(_new(Path(folder) / "scenes"), scenes=True)
    return {
        "losses_on_rows": rows,
        "losses_on_scenes": scenes,
        "logits": logits_of_the_vectors(),
        "state": state_after_a_stream(),
        "answers": answers("cpu"),
    }


def _new(folder: Path) -> Path:
    (folder / "world").mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", type=Path, help="keep what is measured in this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = answers_only() if torch.cuda.is_available() else measure()
    text = json.dumps(found, indent=1) + "\n"
    if arguments.write is None:
        print(text)
    else:
        known = json.loads(arguments.write.read_text()) if arguments.write.exists() else {}
        arguments.write.write_text(json.dumps({**known, **found}, indent=1) + "\n")


def answers_only() -> dict[str, Any]:
    """What a GPU adds."""
    return {"answers_cuda": answers("cuda")}


if __name__ == "__main__":
    main()
