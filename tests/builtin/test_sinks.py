"""The table of sinks in the built-in model: one row with tiny numbers, and what is made of the rows."""

import json
import math
import shutil
import types

import pytest
import torch

from builtin import sinks
from builtin.recall import Reader
from builtin.sinks_row import PACE, PLAN, RESULT, Row, Run, perplexity, shipped, work, write
from builtin.vocabulary import open_tokenizer
from builtin.world.packs import small_pack_path
from builtin.world.tasks import Turn
from tests.builtin.small import BUILTIN


def line(frames):
    return {"frames": frames, "first sign": 0.5, "keyed sign": 0.25, "last sign": 1.0, "perplexity": 2.0}


def row(num_sinks, seed, **more):
    sizes = {"sinks": num_sinks, "window": 64 - num_sinks, "seed": seed}
    return {**sizes, "by_length": [line(16), line(64)], "reading": {"score": 0.9}, **more}


def test_rows_become_a_table_and_a_figure(tmp_path):
    rows = [row(0, None), row(16, None), row(0, 0, steps={"sft": 9, "long_sft": 7}), row(16, 0)]
    write(tmp_path / "sinks.json", {"rows": rows})
    sinks.tell(tmp_path)
    told = (tmp_path / "sinks.md").read_text().splitlines()
    assert told[0].startswith("| attention | seed | steps | reading | talk | first 16 | first 64 | keyed 16")
    assert told[4] == "| window 64 | 0 | 9 + 7 | 90.0 |  | 50.0 | 50.0 | 25.0 | 25.0 |"
    assert told[3].startswith("| 16 sinks + window 48 | shipped | not trained")
    assert (tmp_path / "sinks.png").stat().st_size > 10_000


def test_the_slowest_row_decides_how_many_steps_all_take(tmp_path):
    for number, each in enumerate(sinks.TRAINED):
        (tmp_path / each.key).mkdir()
        write(tmp_path / each.key / PACE, {"sft": 0.5 + number / 10, "long_sft": 1.0})
    given = types.SimpleNamespace(out=tmp_path, tiny=False)
    steps = sinks.Crew(given, sinks.time.time() + sinks.SCORING + sinks.OPENING + 400).plan()
    assert steps["sft"] == pytest.approx(0.9 * 400 * 0.4 / 0.8, abs=1)
    assert steps["long_sft"] == pytest.approx(0.9 * 400 * 0.6, abs=1)


def test_perplexity_is_that_of_the_answers_tokens_alone():
    model = shipped("streaming").float()
    reader = Reader(model, open_tokenizer(BUILTIN / "tokenizer.json"))
    turns = [Turn("What was on the first sign?", "K7", "first sign"), Turn("What is 2 + 2?", "4", "sum")]
    state = model.allocate_state(2)
    decoder = model.model.language_model
    with torch.no_grad():
        decoder(decoder.embed_tokens(torch.full((2, 1), 5)), torch.zeros(3, 2, 1, dtype=torch.int64), state)
        losses = []
        for number, turn in enumerate(turns):
            answer = [*reader.writer.encode(turn.answer), reader.writer.end]
            ids = torch.tensor([reader._question(turn.question) + answer])
            own = state.select(torch.tensor([number]))
            places = own.next_position + torch.arange(ids.shape[1]).expand(3, 1, -1)
            logits = model.lm_head(decoder(decoder.embed_tokens(ids), places, own))[0]
            chances = logits.log_softmax(-1)
            losses += [-chances[-len(answer) - 1 + i, token] for i, token in enumerate(answer)]
        given = perplexity(reader, state, turns)
    assert given == pytest.approx(sum(losses).item() / len(losses), rel=1e-4)
    assert math.exp(given) > 1


@pytest.mark.slow
def test_a_row_is_trained_and_scored(tmp_path):
    for name in ("train", "validation"):
        shutil.copy(small_pack_path(), tmp_path / f"{name}.pack")
    shutil.copy(BUILTIN / "tokenizer.json", tmp_path)
    write(tmp_path / PLAN, {"sft": 1, "long_sft": 1})
    work(Row("streaming", 0), Run(tmp_path, tmp_path, samples=1, tiny=True))
    found = json.loads((tmp_path / "streaming-0" / RESULT).read_text())
    assert (found["sinks"], found["window"], found["steps"]) == (16, 48, {"sft": 1, "long_sft": 1})
    assert [each["frames"] for each in found["by_length"]] == [4, 8]
    assert found["reading"]["samples"] == 8 and found["talk"]["samples"] == 4
