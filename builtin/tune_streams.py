"""Practise keyed recall: the decoder of a trained model learns which sign stood on which colour.

    python -m builtin.tune_streams --model runs/builtin/model --minutes 2.6 --export runs/builtin/tuned

In the mixed training a question like "What is the sign on the red picture?" is rare among others and is not
learnt. Here each stream has several signs and asks for all of them, short streams first; other tasks are
rehearsed in every step, and the vision encoder stays as it is. By the clock, without compiling.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from builtin.feed.batches import BUCKETS, Batch, Planner, bucket_weights, endless, join
from builtin.learner import DeviceBatch, Learner
from builtin.world.packs import Textures, load_world
from builtin.world.render import PatchNamer, render
from builtin.world.splits import TRAIN, rng_of
from builtin.world.streams import keyed_sample
from infinitevl.model.fused import training_kernels
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration

LEARNING_RATE, WARM_UP, BETAS, WEIGHT_DECAY, SEED = 6e-4, 40, (0.9, 0.98), 0.01, 21
# frames a stream, tokens a row; the share of signs falls as streams grow
STAGES = ((0.0, 3, 256, 1.0), (0.3, 5, 320, 1.0), (0.5, 8, 384, 0.75), (0.7, 16, 512, 0.4))


class KeyedPlanner(Planner):
    """Plans one batch of keyed streams and one of anything else for each step."""

    def __init__(self, world, tokenizer, rows: int, clock):
        super().__init__(world, tokenizer, TRAIN, SEED, rows)
        self.clock = clock

    def tuning_step(self, step: int) -> tuple[Batch, Batch]:
        """The two batches of a step; how far the run is decides how long the streams are."""
        rng = rng_of(TRAIN, SEED, 2, step)
        stages = [stage for stage in STAGES if stage[0] <= self.clock()]
        _, frames, length, share = stages[-1] if rng.random() < 0.7 else rng.choice(stages)
        rows, pictures = [], []
        while len(rows) < max(1, 2 * self.num_pictures // frames):
            signs = max(2, round(share * frames))
            sample = keyed_sample(self.world, self.style, rng, frames, min(signs, 8))
            row = self.writer.row(sample, length, 6)
            if row is not None:
                rows.append(row)
                pictures.append([frame.picture for frame in sample.frames])
        keyed = join(rows, pictures, length, frames, self.world)
        weights = {"picture": 1.0, **bucket_weights(1.0)}
        name = rng.choices(list(weights), list(weights.values()))[0]
        return keyed, self.batch(BUCKETS[name], rng)


def main() -> None:
    parser = argparse.ArgumentParser(description="Practise keyed recall.")
    parser.add_argument("--model", type=Path, required=True, help="folder that builtin.train exported")
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.6)
    parser.add_argument("--rows", type=int, default=640, help="pictures in a batch of rehearsal")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    tune(parser.parse_args())


def tune(arguments: argparse.Namespace) -> None:
    """Train, print the losses, export."""
    device = torch.device(arguments.device)
    world, textures = load_world(arguments.data / "train.pack", device=device)
    model = InfiniteVLForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    model = model.to(device)
    learner = Learner(model, PatchNamer(world, textures).num_objects).to(device).train()
    model.model.visual.requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    started = time.perf_counter()

    def progress() -> float:
        return (time.perf_counter() - started) / 60 / arguments.minutes

    tokenizer = Tokenizer.from_file(str(arguments.data / "tokenizer.json"))
    planner = KeyedPlanner(world, tokenizer, arguments.rows, progress)
    noise, is_cuda = torch.Generator(device).manual_seed(SEED), device.type == "cuda"
    losses: list[torch.Tensor] = []
    with training_kernels(learner, torch.bfloat16 if is_cuda else torch.float32):
        for step, batches in enumerate(endless(planner.tuning_step, 0, arguments.workers)):
            done = progress()
            if done >= 1:
                break
            rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses.append(torch.stack([_learn(learner, batch, textures, noise) for batch in batches]))
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 50 == 49:
                keyed, other = torch.stack(losses[-50:]).mean(0).tolist()
                print(f"{done:5.2f} step {step + 1:5d}  keyed {keyed:.4f}  other {other:.4f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(arguments.export, max_shard_size="12MB")


def _learn(learner: Learner, batch: Batch, textures: Textures, noise: torch.Generator) -> torch.Tensor:
    """Backward through one batch; pictures are encoded without gradients."""
    features, device = None, noise.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        if batch.plan is not None:
            with torch.no_grad():
                with torch.autocast(device.type, enabled=False):
                    frames = render(batch.plan, textures, noise)
                features = learner.features(frames)
        loss = learner.answer_loss(features, DeviceBatch(batch, device))
    loss.backward()
    return loss.detach()


if __name__ == "__main__":
    main()
