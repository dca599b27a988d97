import re
from html.parser import HTMLParser

import pytest

from infinitevl.errors import InfiniteVLError
from infinitevl.evaluation.chart import LEFT, WIDTH, MemoryPoint, memory_chart
from infinitevl.evaluation.questions import parse_question
from infinitevl.evaluation.report import Recorder, Thinned, build_page, write_report
from infinitevl.evaluation.streaming import Answered, WatchSettings, watch
from infinitevl.evaluation.units import show_bytes


@pytest.fixture
def recorded(session, source):
    recorder = Recorder(max_frames=8)
    lines = ["3s: what is <b>this</b>?", 'end "quoted"?']
    settings = WatchSettings(report_every=0)
    summary = watch(
        session, source(*range(50)), map(parse_question, lines), recorder, settings=settings
    ).summary
    return recorder, summary


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def page(recorded, **kwargs):
    recorder, summary = recorded
    return Page(build_page(recorder, summary, title="clip <1>.mp4", model="builtin", **kwargs))


def test_the_page_loads_and_runs_nothing_from_elsewhere(recorded):
    shown = page(recorded)
    assert "script" not in shown.tags and "link" not in shown.tags
    assert shown.links and all(link.startswith("data:image/jpeg;base64,") for link in shown.links)


def test_what_users_and_models_wrote_is_text_and_never_markup(recorded):
    shown = page(recorded)
    assert (
        "what is <b>this</b>?" in shown.text
        and 'end "quoted"?' in shown.text
        and "clip <1>.mp4" in shown.text
    )
    assert shown.tags.count("b") == 5


def test_each_question_stands_beside_its_frame_with_time_and_tokens(recorded):
    shown = page(recorded)
    assert re.search(r"0:03 · 64 tokens\s*what is <b>this</b>\?\s*4 frames", shown.text)


def test_the_memory_line_is_flat_and_the_growing_cache_stands_beside_it(recorded):
    recorder, summary = recorded
    html = build_page(recorder, summary, title="", model="", growth_per_token=10)
    heights = {point.split(",")[1] for point in re.search(r'"state" points="([^"]*)"', html)[1].split()}
    assert len(heights) == 1
    assert "full attention of this shape" in html


def test_the_state_line_begins_at_the_start_also_of_a_stream_that_was_continued():
    points = [MemoryPoint(tokens, 500) for tokens in (1000, 1500, 2000)]
    drawn = re.search(r'"state" points="([^"]*)"', memory_chart(points))[1].split()
    assert drawn[0].split(",")[0] == str(float(LEFT)) and len({each.split(",")[1] for each in drawn}) == 1


def test_the_text_of_the_chart_can_be_read_on_a_narrow_screen(recorded):
    recorder, summary = recorded
    html = build_page(recorder, summary, title="", model="", growth_per_token=10**6)
    width = 420 - 2 * 20 - 2 * 17  # without the padding of the page, and of the card with its border
    size = float(re.search(r"svg text \{[^}]*font-size: (\d+)px", html)[1])
    assert size * width / WIDTH >= 10
    for place, text in re.findall(r'<text class="end[^"]*" x="([\d.]+)"[^>]*>([^<]*)', html):
        assert float(place) - 0.56 * size * len(text) >= 0, text


def test_the_page_is_dated(recorded):
    assert re.search(r"watched by builtin on 20\d\d-\d\d-\d\d \d\d:\d\d", page(recorded).text)


def test_key_frames_stay_few_and_evenly_spaced_however_long_the_stream():
    thinned = Thinned(8)
    for number in range(1000):
        thinned.offer(lambda number=number: number)
    steps = {b - a for a, b in zip(thinned.items, thinned.items[1:], strict=False)}
    assert len(thinned.items) <= 8 and len(steps) == 1 and thinned.items[0] == 0


def test_a_true_answer_is_marked(recorded, session, source):
    recorder, summary = recorded
    event = Answered(1.0, "q?", "cat", next(iter(source(1))).image, session.stats())
    recorder(event, truth="dog", right=False)
    recorder(event, truth="cat", right=True)
    shown = Page(build_page(recorder, summary, title="", model=""))
    assert "true answer: dog" in shown.text and "1 of 2" in shown.text


def test_a_report_that_does_not_fit_leaves_nothing_behind(recorded, tmp_path, monkeypatch):
    recorder, summary = recorded

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(InfiniteVLError, match="No space left"):
        write_report(tmp_path / "out.html", recorder, summary, title="", model="")
    assert list(tmp_path.iterdir()) == []


def test_a_report_into_a_missing_folder_says_so(recorded, tmp_path):
    with pytest.raises(InfiniteVLError, match="could not write"):
        write_report(tmp_path / "absent" / "out.html", *recorded, title="", model="")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (812, "812 B"), (4100, "4.1 kB"), (133e6, "133 MB"), (999_999, "1.0 MB")]
)
def test_bytes_are_shown_for_people(count, text):
    assert show_bytes(count) == text


def test_a_chart_without_points_is_still_a_chart():
    assert memory_chart([]).startswith("<svg")
    assert memory_chart([MemoryPoint(0, 0)]).startswith("<svg")
