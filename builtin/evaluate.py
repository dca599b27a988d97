"""Score the built-in model: one table, every number with its sample count.

    python -m builtin.evaluate --model infinitevl/assets/builtin --split validation
    python -m builtin.evaluate --model runs/builtin/model --split test --out scores.json

Greedy answers, exact match (letter case and a final stop do not matter; a label counts if the two concepts
share a picture). Strings, compositions and streams belong to the split that is scored; `unseen` rows also use
its fonts, drawings and figures. Everything is chosen on validation, test is scored once. Under a minute on a
GPU.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from builtin.command import command
from builtin.exam import Scene, Task, tasks
from builtin.feed.rows import FRAME_TOKENS, Writer
from builtin.vocabulary import open_tokenizer
from builtin.world import splits
from builtin.world.frames import Style
from builtin.world.packs import Textures, World, load_world
from builtin.world.render import FRAME_SIZE, PATCH, plan_pictures, render
from builtin.world.tasks import Sample
from infinitevl.model.fused import fuse_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.vision import vision_plan
from infinitevl.processing.pictures.patches import frame_patches
from infinitevl.state import StreamState

LONGEST_ANSWER = 40
FRAMES_AT_ONCE = 2048


class Examiner:
    """Answers samples with a model, many at once, through its state: one reading, then a token at a time."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, tokenizer: Tokenizer):
        self.model, self.writer = model.eval(), Writer(tokenizer)
        self.device = model.device

    @torch.inference_mode()
    def answers(self, samples: list[Sample], textures: Textures, world: World) -> list[str]:
        """The greedy answer to each sample's first question."""
        return self.reply(*self.prompts(samples, textures, world))

    @torch.inference_mode()
    def reply(
        self, embeds: Tensor, positions: Tensor, lengths: Tensor, state: StreamState | None = None
    ) -> list[str]:
        """The greedy answers to prompts [B, T, C] of `lengths` [B], with positions [3, B, T].

        state: what was read before, which takes prompt and answer in; None: nothing.
        """
        decoder = self.model.model.language_model
        if state is None:
            state = self.model.allocate_state(len(embeds), max_length=embeds.shape[1] + LONGEST_ANSWER)
        hidden = decoder(embeds, positions, state, lengths)
        last = hidden.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, hidden.shape[-1]))
        place = state.next_position.clone()
        tokens: list[Tensor] = []
        ended = torch.zeros(len(embeds), dtype=torch.bool, device=self.device)
        while len(tokens) < LONGEST_ANSWER and not bool(ended.all()):
            token = self.model.lm_head(last)[:, 0].argmax(-1)
            ended |= token == self.writer.end
            tokens.append(token)
            step = (place + len(tokens) - 1).expand(3, -1)[..., None]
            last = decoder(decoder.embed_tokens(token[:, None]), step, state, None, True)
        return [self._text(row) for row in torch.stack(tokens, 1).tolist()]

    def _text(self, ids: list[int]) -> str:
        ids = ids[: ids.index(self.writer.end)] if self.writer.end in ids else ids
        return self.writer.tokenizer.decode(ids)

    @torch.inference_mode()
    def prompts(
        self, samples: list[Sample], textures: Textures, world: World
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Everything up to each sample's first answer, as `reply` takes it; rows are padded at their end."""
        rows = [self.writer.prompt(sample) for sample in samples]
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        positions = torch.zeros(3, len(rows), longest, dtype=torch.int64)
        places = []
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = torch.tensor(row.ids)
            positions[:, number, : len(row.ids)] = torch.from_numpy(row.positions)
            places += [number * longest + start for start in row.starts]
        embeds = self.model.model.language_model.embed_tokens(ids.to(self.device))
        if places:
            index = (torch.tensor(places)[:, None] + torch.arange(FRAME_TOKENS)).flatten().to(self.device)
            embeds.flatten(0, 1)[index] = self._features(samples, textures, world).to(embeds.dtype)
        lengths = torch.tensor([len(row.ids) for row in rows], device=self.device)
        return embeds, positions.to(self.device), lengths

    def _features(self, samples: list[Sample], textures: Textures, world: World) -> Tensor:
        pictures = [frame.picture for sample in samples for frame in sample.frames]
        visual, side, parts = self.model.model.visual, FRAME_SIZE // PATCH, []
        noise = torch.Generator(self.device).manual_seed(0)
        for start in range(0, len(pictures), FRAMES_AT_ONCE):
            frames = render(plan_pictures(pictures[start : start + FRAMES_AT_ONCE], world), textures, noise)
            plan = vision_plan(((1, side, side),) * len(frames), visual.sizes, self.device)
            parts.append(visual.encode(frame_patches(frames), plan))
        return torch.cat(parts)


def score(examiner: Examiner, task: Task, count: int, split: str) -> dict:
    """Share of right answers of one task."""
    rng = splits.rng_of(split, 7, *task.name.encode())
    right, alike, seen, wrong = 0, 0, 0, []
    while seen < count:
        samples = [task.make(rng, seen)]
        at_once = max(1, min(512, FRAMES_AT_ONCE // max(1, len(samples[0].frames)), count - seen))
        samples += [task.make(rng, seen + number) for number in range(1, at_once)]
        for sample, answer in zip(samples, _answers(examiner, task, samples), strict=True):
            turn = sample.turns[0]
            is_right = task.right(turn, answer)
            right += is_right
            alike += is_right or fold(answer) == fold(turn.answer)
            if not is_right and len(wrong) < 5:
                wrong.append([turn.question, turn.answer, answer])
        seen += len(samples)
    scores = {"score": right / seen, "score_alike": alike / seen}
    return {"task": task.name, "right": right, "samples": seen, **scores, "wrong": wrong}


def fold(text: str) -> str:
    """Text in which characters that many fonts draw alike are the same: O and 0, I and 1."""
    return text.strip().rstrip(".").upper().translate(str.maketrans("OI", "01"))


def _answers(examiner: Examiner, task: Task, samples: list[Sample]) -> list[str]:
    return examiner.answers(samples, task.scene.textures, task.scene.world)


# ------ the command


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Score the built-in model.")
    parser.add_argument("--model", type=Path, default=Path("infinitevl/assets/builtin"))
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--split", choices=(splits.VALIDATION, splits.TEST), default=splits.VALIDATION)
    parser.add_argument("--samples", type=int, help="per task (default: 1000 on a GPU, 40 on a CPU)")
    parser.add_argument("--lengths", type=int, nargs="*", default=[4, 16, 64, 256], help="frames of streams")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument(
        "--shuffle", action="store_true", help="shuffle the weights first: the score of chance"
    )
    parser.add_argument("--out", type=Path, help="write JSON here")
    arguments = parser.parse_args()
    model = open_model(arguments.model)
    if arguments.shuffle:
        shuffle_(model)
    found = examine(
        model, arguments.data, arguments.split, arguments.lengths, arguments.samples, arguments.only
    )
    if arguments.out:
        arguments.out.write_text(json.dumps({"model": str(arguments.model), **found}, indent=1))


def open_model(folder: Path) -> InfiniteVLForConditionalGeneration:
    """A model ready to answer many samples at once: on a GPU in bfloat16, with its weights laid out."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return InfiniteVLForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device).eval()


def examine(
    model: InfiniteVLForConditionalGeneration,
    data: Path,
    split: str,
    lengths: list[int],
    samples: int | None = None,
    only: str = "",
) -> dict:
    """The table as JSON values: every task whose name contains `only`, streams of `lengths` frames.

    samples: per task; by default 1000 on a GPU, 40 on a CPU.
    """
    examiner = Examiner(model, open_tokenizer(data / "tokenizer.json"))
    is_cuda = model.device.type == "cuda"
    if is_cuda:
        fuse_(model)
    count = samples or (1000 if is_cuda else 40)
    results = []
    for task in tasks(*scenes(data, split, model.device), lengths):
        if only in task.name:
            results.append(_timed(examiner, task, math.ceil(count * task.share), split))
    return {"split": split, "device": str(model.device), "results": results}


def _timed(examiner: Examiner, task: Task, count: int, split: str) -> dict:
    start = time.perf_counter()
    result = score(examiner, task, count, split)
    seconds = time.perf_counter() - start
    example = result["wrong"][0] if result["wrong"] else ""
    print(
        f"{task.name:34s} {100 * result['score']:6.1f} % of {result['samples']:5d}  "
        f"({100 * result['score_alike']:5.1f} % with O = 0, I = 1)  {seconds:5.1f} s",
        example,
        flush=True,
    )
    return {**result, "seconds": round(seconds, 2)}


def scenes(data: Path, split: str, device: torch.device) -> tuple[Scene, Scene]:
    """The training world with the split's strings, and the split's own world."""
    found = []
    for pack in (splits.TRAIN, split):
        world, textures = load_world(data / f"{pack}.pack", device=device)
        found.append(Scene(world, textures, Style.of(world, split, strong=False)))
    return found[0], found[1]


def shuffle_(model: torch.nn.Module) -> None:
    """Put every weight somewhere else in its own tensor."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view_as(parameter)


if __name__ == "__main__":
    main()
