"""Watch rules with the built-in model: the example of the page, and how well events are found."""

import contextlib
import io
import re

import pytest

import infinitevl
from builtin.watching import EVERY, Score, score
from builtin.world.packs import load_world
from tests.project.source import ROOT

PAGE = (ROOT / "docs" / "streaming.md").read_text()


def test_the_example_of_the_page_tells_of_one_event(monkeypatch) -> None:
    section = PAGE.split("## Watch rules\n", 1)[1]
    program = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    monkeypatch.chdir(ROOT)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(program, "streaming.md", "exec"), {})
    lines = told.getvalue().splitlines()
    assert len(lines) == 1 and "beer mug" in lines[0] and lines[0].endswith(", 3)")


def test_events_are_scored_by_when_they_come() -> None:
    found = Score()
    found.add([0.0, 10.0, 20.0, 30.0], [0.0, 12.0, 13.0, 23.0, 31.0])
    assert (found.num_hits, found.num_false, found.num_missed) == (3, 2, 1)
    assert found.delays == [0.0, 2.0, 1.0]
    assert (found.precision, found.recall, found.f1) == (0.6, 0.75, pytest.approx(2 / 3))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rules_of_the_builtin_model_find_signs_in_time() -> None:
    model, processor = infinitevl.load(device="cpu")
    found = score("sign", 12, model, processor, *load_world())
    assert found.f1 >= 0.9 and max(found.delays) <= EVERY, found.line("sign")
