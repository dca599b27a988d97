"""One row of the table of `builtin.sinks`: a variant of attention and a seed, trained and scored.

Started by `builtin.sinks`, which decides how many steps all rows take once every row has said how fast it is.
"""

import argparse
import dataclasses
import gc
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from builtin import recall
from builtin.command import command
from builtin.evaluate import Examiner, Task, open_model, scenes, score, tasks
from builtin.feed.settings import DrawSettings, SmallData
from builtin.rehearsal import Sizes, tiny_stage
from builtin.school import RECIPES
from builtin.stages import SmallStage, read_stage, teach
from builtin.vocabulary import open_tokenizer
from builtin.world import splits
from builtin.world.tasks import Turn
from infinitevl.files import atomic_write
from infinitevl.model import opening
from infinitevl.model.attention_variants import SLIDING_WINDOW, STREAMING
from infinitevl.model.fused import fuse_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.state import StreamState
from infinitevl.training.starts import MODEL
from infinitevl.training.training_log import LOG

Model = InfiniteVLForConditionalGeneration
STAGES = ("sft", "long_sft")
TRIAL_STEPS = {"sft": 18, "long_sft": 9}  # of which the last third is measured
RATES = {"sft": 3e-4, "long_sft": 1e-3}  # sft goes on from learned weights: half of the recipe's rate
PACE, PLAN, RESULT = "pace.json", "plan.json", "result.json"
LENGTHS = (16, 64, 256, 1024)
READING, TALK = ("read, seen fonts", "read, unseen font families"), ("facts, sums and talk",)


@dataclass(frozen=True)
class Row:
    """What is trained and scored.

    attention: variant of the stage-2 model that it starts from. seed: of the batches' order and the adapter;
    None for the shipped weights as they are, of which nothing is trained.
    """

    attention: str
    seed: int | None

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.attention}-{'shipped' if self.seed is None else self.seed}"


@dataclass(frozen=True)
class Run:
    """What all rows share.

    share: rows of a card, by which batches are divided. workers: processes of a row that plan batches.
    samples: of each task and length. tiny: a rehearsal, in which nothing is learned.
    """

    folder: Path
    data: Path
    share: int = 1
    workers: int = 0
    samples: int = 128
    tiny: bool = False

    @property
    def lengths(self) -> Sequence[int]:
        """Frames of the streams that are scored."""
        return (4, 8) if self.tiny else LENGTHS


def work(row: Row, run: Run) -> None:
    """Train a row, if it trains, and score it; what was found is written as soon as it is known."""
    folder = run.folder / row.key
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = dataclasses.asdict(row)
    if row.seed is None:
        model = shipped(row.attention)
    else:
        write(folder / PACE, {name: _pace(name, row, run) for name in STAGES})
        steps = _wait_for(run.folder / PLAN)
        start = time.perf_counter()
        for name in STAGES:
            teach(_stage(name, row, run).changed(num_steps=steps[name]))
            gc.collect()
        found |= {"steps": steps, "seconds": round(time.perf_counter() - start, 1)}
        model = open_model(folder / STAGES[-1] / MODEL)
    found |= {"window": model.config.text_config.sliding_window}
    found |= {"sinks": model.config.text_config.num_sink_tokens}
    for part in (streams, short_tasks):
        found |= part(model, run)
        write(folder / RESULT, found)


def shipped(attention: str) -> Model:
    """The model of the package with its adapter, as `open_model` of exams opens a folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return opening.open_model(opening.BUILTIN, dtype, attention).to(device).eval()  # type: ignore[arg-type]


# ------ training


def _stage(name: str, row: Row, run: Run) -> SmallStage:
    """A stage with this row's model, seed and batches."""
    stage = read_stage(RECIPES / f"{name}.yaml")
    if run.tiny:
        stage = tiny_stage(stage, Sizes())
    scenes = stage.data.scenes.model_copy(
        update={
            "pack": str(run.data / "train.pack"),
            "draws": [_less(d, run) for d in stage.data.scenes.draws],
        }
    )
    folder = run.folder / row.key
    starts = {"sft": opening.BUILTIN_STAGE_2, "long_sft": str(folder / "sft" / MODEL)}
    changes: dict[str, Any] = {"student": starts[name], "out": str(folder / name), "seed": row.seed}
    changes |= {"learning_rate": RATES[name], "save_every": 10**6, "log_every": 5}
    changes |= {"attention": row.attention if name == "sft" else None}
    return dataclasses.replace(stage.changed(**changes), data=SmallData(scenes=scenes, workers=run.workers))


def _less(draw: DrawSettings, run: Run) -> DrawSettings:
    """The batch of a row that shares its card, with streams that are no longer than those that are scored."""
    if run.tiny:
        return draw
    fits = {name: weight for name, weight in draw.buckets.items() if name not in ("long4096", "long10240")}
    at_end = (
        None if draw.buckets_at_end is None or "long10240" in draw.buckets_at_end else draw.buckets_at_end
    )
    changes = {"num_pictures": draw.num_pictures // run.share, "buckets": fits, "buckets_at_end": at_end}
    return draw.model_copy(update=changes)


def _pace(name: str, row: Row, run: Run) -> float:
    """Seconds that a step takes beside the other rows."""
    if run.tiny:
        return 0.1
    trial, count = run.folder / row.key / f"trial-{name}", TRIAL_STEPS[name]
    stage = _stage(name, row, run)
    short = {"out": str(trial), "num_steps": 2 * count, "log_every": count // 3}
    teach(stage.changed(**short, student=opening.BUILTIN_STAGE_2, attention=row.attention), stop_after=count)
    last = json.loads((trial / LOG).read_text().splitlines()[-1])
    shutil.rmtree(trial)
    gc.collect()
    return last["seconds_left"] / (2 * count - last["step"])


def _wait_for(path: Path) -> dict[str, Any]:
    while not path.exists():
        time.sleep(0.2)
    return json.loads(path.read_text())


# ------ scores


@torch.inference_mode()
def streams(model: Model, run: Run) -> dict[str, Any]:
    """Recall of signs by the length of a stream, and the perplexity of the true answers."""
    scene, _ = scenes(run.data, splits.VALIDATION, model.device)
    tokenizer = open_tokenizer(run.data / "tokenizer.json")
    if model.device.type == "cuda":
        fuse_(model)
    reader, pool_size = recall.Reader(model, tokenizer), 8 if run.tiny else 4096
    pool = recall.pool_of(scene, splits.VALIDATION, pool_size)
    pooled, found = recall.features_of(model.model.visual, scene, pool), []
    for length in run.lengths:
        shown, signs = recall.plan_streams(scene, splits.VALIDATION, length, run.samples, pool_size)
        table = torch.cat([pooled, recall.features_of(model.model.visual, scene, signs)])
        state, _ = reader.read(table, shown.frames.to(model.device))
        line: dict[str, Any] = {"frames": length, "streams": run.samples}
        line["state_bytes"] = state.num_bytes // run.samples
        for task in recall.TASKS:
            turns = shown.turns[task]
            given = reader.ask(state, turns)
            right = sum(turn.accepts(text) for turn, text in zip(turns, given, strict=True))
            line[task] = right / len(turns)
        asked = [perplexity(reader, state, shown.turns[task]) for task in ("first sign", "keyed sign")]
        line["perplexity"] = math.exp(sum(asked) / len(asked))
        found.append(line)
    return {"by_length": found}


def perplexity(reader: recall.Reader, state: StreamState, turns: Sequence[Turn]) -> float:
    """Mean negative logarithm of the chance of each token of the true answers, their ends among them."""
    writer, device = reader.writer, reader.device
    questions = [reader._question(turn.question) for turn in turns]
    answers = [[*writer.encode(turn.answer), writer.end] for turn in turns]
    rows = [question + answer for question, answer in zip(questions, answers, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    places = (state.next_position[:, None] + torch.arange(longest, device=device)).expand(3, -1, -1)
    decoder = reader.model.model.language_model
    hidden = decoder(decoder.embed_tokens(ids), places, state.fork(), lengths)
    logits: Tensor = reader.model.lm_head(hidden[:, :-1]).float()
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    number = torch.arange(1, longest, device=device)
    starts = torch.tensor([len(question) for question in questions], device=device)
    is_answer = (number >= starts[:, None]) & (number < lengths[:, None])
    return (losses[is_answer].sum() / is_answer.sum()).item()


def short_tasks(model: Model, run: Run) -> dict[str, Any]:
    """Shares of right answers in reading and in talk."""
    examiner = Examiner(model, open_tokenizer(run.data / "tokenizer.json"))
    seen, unseen = scenes(run.data, splits.VALIDATION, model.device)
    found = {task.name: task for task in tasks(seen, unseen, [])}
    return {
        title: _share([found[name] for name in names], examiner, run)
        for title, names in (("reading", READING), ("talk", TALK))
    }


def _share(wanted: Sequence[Task], examiner: Examiner, run: Run) -> dict[str, float]:
    scored = [score(examiner, task, 4 * run.samples, splits.VALIDATION) for task in wanted]
    right, samples = (sum(each[name] for each in scored) for name in ("right", "samples"))
    return {"score": right / samples, "samples": samples}


def write(path: Path, found: Any) -> None:
    """Write JSON, complete or not at all."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(found, indent=1))


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="One row of the table of sinks.")
    parser.add_argument("--attention", choices=(SLIDING_WINDOW, STREAMING), required=True)
    parser.add_argument("--seed", type=int, help="default: the shipped weights, not trained")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--share", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    run = Run(given.folder, given.data, given.share, given.workers, given.samples, given.tiny)
    work(Row(given.attention, given.seed), run)


if __name__ == "__main__":
    main()
