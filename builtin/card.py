"""The model card of the built-in model, from what its school wrote: settings, minutes, scores, recall."""

import json
from pathlib import Path
from typing import Any

from builtin.stages import SmallStage, read_stage
from infinitevl.training.recipes import LongSft

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

A small model in the architecture of InfiniteVL, with 11.7 million parameters. It exists so that the
package can be tried, tested and understood on a laptop.

- Decoder: two blocks, each of one sliding-window layer (64 tokens) and three Gated DeltaNets.
- Vision encoder: six blocks. Pictures have 112 x 112 pixels and become 16 tokens each.
- Files: `model.safetensors` is the model after stage 2 (`builtin-stage2`). `adapter/` is stage 3, a LoRA
  of rank {rank} in peft's format, which `load("builtin")` merges.

## What it can and cannot do

It knows a small world: emoji, signs in many fonts, digits, flags, coloured shapes, streams of these, a
few facts. **It knows nothing else. On photographs it guesses, and it cannot hold a conversation.** It
mostly cannot say what came just before or after something in a stream, and it sometimes confuses
look-alike characters (O and 0, I and 1).

## Data

All pictures were drawn from free packages of npm, PyPI and Debian, fetched by name and version. NOTICE
has licences and attributions. The training digits of MNIST (usually stated CC-BY-SA-3.0) are among them.
The emoji come from fifteen sets, called hands below, because each is drawn in its own manner. The test
split holds what no training sample has: the drawings of another set (EmojiOne), three font families,
strings chosen by a hash rule, and MNIST's test digits.

## How it was made

By the published pipeline (`make school`, settings in builtin/recipes). The teacher has the same size and
full attention in every layer. It did not start from random weights but from a model that was trained for
16.8 minutes on one H200 (at commit 4a2dfaf): vision encoder, embedding, norms, feed-forward and the
attention of two window layers came from there, and the attention of the other six layers was new. The
teacher was then trained twice: for 4.8 minutes with five sets of drawings, and for the minutes below
with fifteen sets, also restyled. AdamW, products in bfloat16. All settings were chosen before any score
of the test split was seen.
"""
_STAGES = {
    "teacher_dense": "teacher, vision encoder",
    "teacher": "teacher, everything",
    "distill_layers": "1a, layer by layer",
    "distill_logits": "1b, next tokens",
    "sft": "2, answers",
    "long_sft": "3, long streams, LoRA",
}
_COLUMNS = {"teacher": "teacher", "sft": "stage 2", "long_sft": "stage 3"}


def write_card(school: Path, recipes: Path) -> str:
    """The whole card of the school in `school`."""
    long_sft = read_stage(recipes / "long_sft.yaml").recipe
    assert isinstance(long_sft, LongSft)
    head = CARD.replace("{rank}", str(long_sft.lora.rank))
    parts = [head, _steps(school, recipes), _scores(school), _recall(school)]
    return "\n".join(part for part in parts if part)


def _steps(school: Path, recipes: Path) -> str:
    """One row a step of the school: how long it took, on what, with which settings."""
    lines = ["| step | steps | learning rate | pictures a step | minutes | on |", "|---|---|---|---|---|---|"]
    for name, title in _STAGES.items():
        plan, done = _read(school / f"{name}.json"), _read(school / "done" / f"{name}.json")
        if plan and done:
            stage = read_stage(recipes / f"{name}.yaml")
            rate = plan.get("learning_rate", stage.recipe.learning_rate)
            lines.append(
                f"| {title} | {plan['num_steps']} | {rate:g} | {_pictures(stage)} | {_minutes(done)} |"
            )
    return "\n".join([*lines, "", "Minutes include loading and measuring the pace.", ""])


def _pictures(stage: SmallStage) -> int:
    return sum(draw.num_pictures for draw in stage.data.scenes.draws)


def _minutes(done: dict[str, Any]) -> str:
    return f"{done['seconds'] / 60:.1f} | {done['device']}"


def _scores(school: Path) -> str:
    """Exact answers on the test split, beside the teacher's."""
    read = {name: _read(school / "scores" / f"{name}-test.json") for name in _COLUMNS}
    found = {name: table for name, table in read.items() if table}
    tables = {name: {row["task"]: row for row in table["results"]} for name, table in found.items()}
    if not tables:
        return ""
    columns = [name for name in _COLUMNS if name in tables]
    heads = [_COLUMNS[name] for name in columns]
    lines = ["## Scores on the test split, exact answers", ""]
    lines.append("| task | " + " | ".join(heads) + " | samples |")
    lines.append("|---" * (len(columns) + 2) + "|")
    for task in dict.fromkeys(task for name in columns for task in tables[name]):
        rows = [tables[name].get(task) for name in columns]
        cells = ["" if row is None else f"{100 * row['score']:.1f} %" for row in rows]
        samples = sorted({row["samples"] for row in rows if row}, reverse=True)
        lines.append(f"| {task} | {' | '.join(cells)} | {' / '.join(map(str, samples))} |")
    places = [f"{_COLUMNS[name]} on {', '.join(_devices(found[name]))}" for name in columns]
    return "\n".join([*lines, "", f"Scored: {'; '.join(places)}.", ""])


def _devices(table: dict[str, Any]) -> list[str]:
    """What a table's rows were scored on; a row may name another device than its table."""
    return sorted({row.get("device", table["device"]).split(":")[0] for row in table["results"]})


def _recall(school: Path) -> str:
    """First and keyed sign against the length of a stream, and what a stream keeps."""
    found = _read(school / "recall" / "recall.json")
    if not found:
        return ""
    lines = ["## Recall against the length of a stream (test split)", ""]
    lines += ["| model | frames | first sign | keyed sign | last sign | streams | MB a stream |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in found["results"]:
        if "not_run" in row:
            lines.append(f"| {row['model']} | {row['frames']} | not run: {row['not_run']} | | | | |")
            continue
        scores = " | ".join(f"{100 * score:.1f} %" for score in row["scores"].values())
        size = row["state_bytes"] / 1e6
        lines.append(f"| {row['model']} | {row['frames']} | {scores} | {row['streams']} | {size:.2f} |")
    lines += [
        "",
        "`window only` is the teacher with a window of 64 tokens in every layer, without further training.",
        "The teacher was trained on streams of at most 64 frames: its scores beyond them say nothing about",
        "full attention.",
    ]
    return "\n".join(lines) + "\n"


def records(school: Path) -> list[dict[str, Any]]:
    """One line a measurement: seconds of every step, scores of every task, recall at every length."""
    lines: list[dict[str, Any]] = []
    for path in sorted((school / "done").glob("*.json")):
        plan = _read(school / path.name) or {}
        lines.append({"benchmark": "builtin.school", "step": path.stem, **plan, **(_read(path) or {})})
    for path in sorted((school / "scores").glob("*.json")):
        table, machine = _read(path) or {}, _machine(school, f"exam-{path.stem}")
        for row in table["results"]:
            scores = {"exact": row["score"], "exact_with_O0_I1_alike": row["score_alike"]}
            about = {name: table[name] for name in ("model", "split")}
            about |= {"device": row.get("device", table["device"]), "task": row["task"]}
            lines.append(
                {"benchmark": "builtin.evaluate", **about, **scores, "samples": row["samples"], **machine}
            )
    recall = _read(school / "recall" / "recall.json") or {"results": []}
    for row in recall["results"]:
        plain = {key: value for key, value in row.items() if key != "norms"}
        lines.append(
            {"benchmark": "builtin.recall", "split": recall["split"], **plain} | _machine(school, "recall")
        )
    return lines


def _machine(school: Path, step: str) -> dict[str, Any]:
    """What a step ran on, without its seconds."""
    done = _read(school / "done" / f"{step}.json") or {}
    return {key: value for key, value in done.items() if key != "seconds"}


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None
