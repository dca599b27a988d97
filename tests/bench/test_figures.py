"""The figures show what was measured."""

import pytest
from matplotlib import pyplot
from PIL import Image

from infinitevl.bench.clock import Timing
from infinitevl.bench.figures import draw, frame_figure, frame_lines, token_figure, token_lines
from infinitevl.bench.record import EAGER, GRAPHED, OURS, Place, append, counted, timed
from infinitevl.errors import InputError

PLACE = Place("4b", "abc", "a card", {"torch": "2"})
CONTEXTS = (1024, 61440, 409600)


def token(who, context, value, answers=1, place=PLACE):
    timing = Timing(value, 0.9 * value, 1.1 * value, 20)
    common = {"context": context, "answers": answers, "dtype": "bfloat16"}
    return timed(place, "decode", "token", timing, who=who, **common)


def frame(who, seen, value, mode="image"):
    common = {"frames_seen": seen, "mode": mode, "dtype": "bfloat16"}
    timing = Timing(value, value, value, 20)
    return [
        timed(PLACE, "stream", "frame", timing, who=who, **common),
        counted(PLACE, "stream", "memory", 9e9 + seen, "B", who=who, **common),
    ]


@pytest.fixture
def tokens():
    slow = [token(EAGER, context, 60.0 + context / 1e4) for context in CONTEXTS]
    graphed = [token(GRAPHED, context, 4.0 + context / 1e5) for context in CONTEXTS]
    return [*(token(OURS, context, 2.1) for context in CONTEXTS), *slow, *graphed]


@pytest.fixture
def frames():
    return [
        line
        for seen in (50, 400)
        for who, ms in ((OURS, 7.0), (EAGER, 300.0))
        for line in frame(who, seen, ms)
    ]


def heights(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return list(line.get_xdata()), list(line.get_ydata())


def test_of_several_variants_of_attention_the_last_one_is_drawn_and_named(tokens):
    common = {"context": 1024, "answers": 1, "dtype": "bfloat16", "attention_variant": "streaming"}
    streaming = timed(PLACE, "decode", "token", Timing(1.5, 1.4, 1.6, 20), who=OURS, **common)
    figure = token_figure(pyplot, token_lines([*tokens, streaming]))
    assert heights(figure.axes[0], "InfiniteVL") == ([1024], [1.5])
    assert "4b shape, streaming attention" in figure.get_suptitle()
    assert "attention" not in token_figure(pyplot, token_lines([streaming, *tokens])).get_suptitle()


def test_one_line_for_each_of_those_measured(tokens):
    figure = token_figure(pyplot, token_lines(tokens))
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == [
        "InfiniteVL",
        "Transformer, eager",
        "Transformer, CUDA graph",
    ]
    assert heights(axes, "InfiniteVL") == (list(CONTEXTS), [2.1] * 3)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1K", "60K", "400K"]
    pyplot.close(figure)


def test_of_two_lines_about_one_point_the_later_counts_and_batches_are_left_out(tokens):
    lines = [*tokens, token(OURS, 1024, 1.9), token(OURS, 1024, 5.0, answers=8)]
    figure = token_figure(pyplot, token_lines(lines))
    assert heights(figure.axes[0], "InfiniteVL")[1] == [1.9, 2.1, 2.1]
    pyplot.close(figure)


def test_measurements_of_another_place_are_not_mixed_in(tokens):
    other = Place("4b", "abc", "another card", {})
    assert {line.device for line in token_lines([*tokens, token(OURS, 2048, 9.0, place=other)])} == {
        "another card"
    }


def test_speed_and_memory_are_drawn_over_frames_seen(frames):
    video = frame(OURS, 800, 4.0, mode="video")
    figure = frame_figure(pyplot, frame_lines([*video, *frames]))
    above, below = figure.axes
    assert len(above.lines) == len(below.lines) == 2
    assert heights(above, "InfiniteVL") == ([50, 400], [1000 / 7.0] * 2)
    assert heights(below, "Transformer, eager")[1] == pytest.approx([9.00000005, 9.0000004])
    pyplot.close(figure)


def test_both_figures_are_written_as_pictures(tokens, frames, tmp_path):
    file = tmp_path / "lines.jsonl"
    for record in [*tokens, *frames]:
        append(record, file)
    written = draw(file, tmp_path)
    assert [path.name for path in written] == ["decode.png", "stream.png"]
    for path in written:
        picture = Image.open(path).convert("L")
        assert picture.width > 600 and picture.getextrema()[0] < 50 and picture.getextrema()[1] == 255


def test_a_file_without_measurements_is_told(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="infinitevl bench decode --out"):
        draw(tmp_path / "empty.jsonl", tmp_path)
