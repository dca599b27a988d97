"""Train the built-in model on one GPU from the data that `builtin.build_data` wrote.

    python -m builtin.train --rehearse                  # a few steps of each kind: pace, memory, projection
    python -m builtin.train --stop-after 9              # the run; stops itself after 9 minutes ...
    python -m builtin.train --stop-after 9 --resume     # ... and goes on from where it was
    python -m builtin.train --export runs/builtin/model # the weights of the checkpoint, bfloat16

The recipe's minutes are planned over all calls together. Writes checkpoint.pt, log.jsonl and curves.png.
"""

import argparse
import importlib.util
import time
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer

from builtin.feed.batches import BUCKETS
from builtin.log import draw_curves
from builtin.loop import Options, Trainer
from builtin.package import save_processor
from builtin.recipe import Recipe
from builtin.world.packs import load_world
from infinitevl.model.fused import training_kernels


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in model.")
    parser.add_argument("--recipe", type=Path, default=Path("builtin/recipes/hybrid.yaml"))
    parser.add_argument("--data", type=Path, default=Path(".data"), help="folder of build_data")
    parser.add_argument("--folder", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument(
        "--num-steps", type=int, help="end after so many steps instead of the recipe's minutes"
    )
    parser.add_argument("--stop-after", type=float, default=1e9, help="minutes after which this call stops")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="measure a few steps of every kind and end")
    parser.add_argument("--export", type=Path, help="write the checkpoint's weights here and end")
    arguments = parser.parse_args()
    trainer = build(arguments)
    if arguments.export:
        trainer.resume()
        export(trainer, arguments.export, arguments.data / "tokenizer.json")
    elif arguments.rehearse:
        rehearse(trainer)
    else:
        if arguments.resume:
            trainer.resume()
        done = trainer.run()
        if importlib.util.find_spec("matplotlib"):
            draw_curves(arguments.folder / "log.jsonl", arguments.folder / "curves.png")
        print(f"{'complete' if done else 'stopped'} at step {trainer.clock.step}", flush=True)


def build(arguments: argparse.Namespace) -> Trainer:
    """The trainer that the arguments describe."""
    world, textures = load_world(arguments.data / "train.pack", device=arguments.device)
    tokenizer = Tokenizer.from_file(str(arguments.data / "tokenizer.json"))
    options = Options(
        arguments.folder,
        torch.device(arguments.device),
        arguments.workers,
        not arguments.no_compile,
        arguments.num_steps,
        arguments.stop_after,
    )
    trainer = Trainer(Recipe.read(arguments.recipe), world, textures, tokenizer, options)
    parameters = sum(p.numel() for p in trainer.learner.model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {2 * parameters / 1e6:.1f} MB in bfloat16", flush=True)
    return trainer


def export(trainer: Trainer, folder: Path, tokenizer: Path) -> None:
    """Weights in bfloat16 as safetensors shards, with the configuration and the processor."""
    trainer.learner.model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="12MB")
    save_processor(tokenizer, folder)
    print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB", flush=True)


def rehearse(trainer: Trainer, repeats: int = 12) -> None:
    """Time steps of the dense phase and of every bucket; the first step of each compiles."""
    picture = BUCKETS["picture"]
    dtype = torch.bfloat16 if trainer.device.type == "cuda" else torch.float32
    with training_kernels(trainer.learner, dtype):
        plan = trainer.planner.pictures(0)
        _time("dense", lambda: trainer._dense_step(plan), repeats)
        for bucket in BUCKETS.values():
            rng = Random(bucket.name)
            planned = (trainer.planner.batch(picture, rng), trainer.planner.batch(bucket, rng), bucket.name)
            _time(f"picture + {bucket.name}", lambda planned=planned: trainer._joint_step(planned), repeats)
    trainer._write_log()


def _time(name: str, step, repeats: int) -> None:
    start = time.perf_counter()
    step()
    _wait()
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    _wait()
    mean = (time.perf_counter() - start) / repeats
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0
    print(
        f"{name:22s} first {first:6.1f} s, then {1000 * mean:7.1f} ms a step, peak {memory:.1f} GB",
        flush=True,
    )


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
