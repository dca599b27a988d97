"""The page in a real browser, against a real server: what people do with it, and what goes wrong."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.project.source import ROOT
from tests.server import page_server
from tests.server.page_server import PageServer, serving

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright and chromium")

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs playwright and chromium"),
]
expect = playwright.expect
PATIENCE = 20_000  # milliseconds
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    film = page_server.write_camera_file(tmp_path_factory.mktemp("camera") / "sign.mjpeg")
    with playwright.sync_playwright() as started:
        arguments = [*page_server.CHROMIUM, f"--use-file-for-fake-video-capture={film}"]
        browser = started.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens the page in a fresh context; whatever a script throws or the policy forbids fails the test."""
    contexts, problems = [], []

    def note(message: Any) -> None:
        if "Content Security Policy" in message.text:
            problems.append(message.text)

    def open_page(address: str, *, script: str | None = None, **settings: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", note)
        if script:
            page.add_init_script(script)
        page.goto(address)
        return page

    expect.set_options(timeout=PATIENCE)
    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(autouse=True)
def no_streams_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The shared server begins every test without streams."""
    yield
    if "server" in request.fixturenames:
        address = request.getfixturevalue("server").address
        for stream in httpx.get(f"{address}v1/streams").json()["data"]:
            httpx.delete(f"{address}v1/streams/{stream['id']}")


def watch(page: Any, source: str) -> None:
    """Add a stream of a source, from the page or from the dialog, and wait for frames."""
    if page.locator("#picker").is_hidden():
        page.click("#add")
    page.click(f"[data-source={source}]")
    expect(page.locator("#stat-frames")).to_have_text(re.compile(r"^([2-9]|\d\d+)$"))


def ask(page: Any, question: str) -> str:
    """Type a question, press Enter, and wait for the whole answer."""
    number = page.locator("#history li").count()
    page.fill("#question", question)
    page.press("#question", "Enter")
    row = page.locator("#history li").nth(number)
    expect(row).to_have_attribute("data-state", "done")
    return row.locator(".answer").inner_text()


def test_watches_a_camera_and_answers(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "camera")
    page.evaluate(page_server.WATCH_ANSWERS)
    assert ask(page, "What does the sign say?") == "K4M"
    grown = page.evaluate("[...window.seen].filter(Boolean)")
    assert len(grown) > 1 and all("K4M".startswith(text) for text in grown)
    expect(page.locator("#announcer")).to_have_text("What does the sign say? K4M")
    expect(page.locator(".said")).to_have_text("K4M")
    expect(page.locator("#history .when")).to_have_text(re.compile(r"^0:\d\d$"))


def test_memory_is_flat_while_tokens_rise(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "sample")
    expect(page.locator("#chart .tokens")).to_have_attribute("d", re.compile("^M0(.*L){3}"))
    heights = page.evaluate(page_server.HEIGHTS)
    assert len(set(heights["memory"])) == 1
    assert heights["tokens"] == sorted(heights["tokens"], reverse=True) and len(set(heights["tokens"])) > 2
    expect(page.locator("#chart")).to_have_attribute(
        "aria-label", re.compile(r"^\d+ tokens seen; memory is still 991 kB\.$")
    )


def test_one_frame_at_a_time_at_the_chosen_rate(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    flying, most, times = set(), [0], []

    def begun(request: Any) -> None:
        if "/frames" in request.url:
            flying.add(request)
            most[0] = max(most[0], len(flying))
            times.append(float(re.search(r"time=([\d.]+)", request.url)[1]))

    page.on("request", begun)
    page.on("requestfinished", lambda request: flying.discard(request))
    watch(page, "sample")
    page.locator("#rate").fill("6")
    expect(page.locator("#rate-text")).to_have_text("10 frames/s")
    page.wait_for_timeout(3000)
    fast = len(times)
    page.locator("#rate").fill("0")
    expect(page.locator("#rate")).to_have_attribute("aria-valuetext", "1 frame in 5 s")
    page.wait_for_timeout(300)
    slow = len(times)
    page.wait_for_timeout(2000)
    assert fast > 10 and len(times) - slow <= 1
    assert most == [1] and times == sorted(times)


def test_forks_side_by_side(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "camera")
    page.click("#fork")
    expect(page.locator(".tile")).to_have_count(2)
    fork = page.locator(".tile").nth(1)
    expect(fork).to_contain_text("Fork of Camera")
    expect(fork.get_by_role("button", name="Choose Fork of Camera")).to_have_attribute("aria-pressed", "true")
    assert ask(page, "What does the sign say?") == "K4M"
    frames = page.locator("#stat-frames").inner_text()
    watch(page, "sample")
    expect(page.locator(".tile")).to_have_count(3)
    expect(page.locator("#history li")).to_have_count(0)
    page.get_by_role("button", name="Choose Fork of Camera").press("Enter")
    expect(page.locator("#history li")).to_have_count(1)
    expect(page.locator("#stat-frames")).to_have_text(frames)  # the others went on, it did not
    fork.get_by_role("button", name="Choose a source").click()
    page.click("[data-source=sample]")
    expect(page.locator("#stat-frames")).not_to_have_text(frames)
    page.get_by_role("button", name="Remove Camera").click()
    page.click("text=Keep it")
    expect(page.locator(".tile")).to_have_count(3)
    page.get_by_role("button", name="Remove Camera").click()
    page.locator("#remove-dialog").get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator(".tile")).to_have_count(2)


def test_saves_and_loads(server: PageServer, open_page: Open, tmp_path: Path) -> None:
    page = open_page(server.address)
    watch(page, "camera")
    with page.expect_download() as download:
        page.click("#save")
    saved = tmp_path / download.value.suggested_filename
    assert saved.name.startswith("stream-") and saved.suffix == ".safetensors"
    download.value.save_as(saved)
    page.click("#add")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(saved.read_bytes()[:1000])
    page.set_input_files("#state-input", broken)
    expect(page.locator("#picker-error")).not_to_be_empty()
    expect(page.locator(".tile")).to_have_count(1)
    page.set_input_files("#state-input", saved)
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator(".tile").nth(1)).to_contain_text("It waits where it was saved.")
    expect(page.locator(".tile").nth(1)).to_contain_text("its pictures were not")
    assert ask(page, "What does the sign say?") == "K4M"


def test_a_reload_keeps_the_streams(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "sample")
    page.reload()
    expect(page.locator(".tile")).to_contain_text("It waits where it was.")
    expect(page.locator(".tile img")).to_be_visible()  # the newest picture that the server has
    assert int(page.locator("#stat-frames").inner_text()) >= 2
    other = open_page(server.address)
    other.click("#open-form button")
    expect(other.locator(".tile")).to_have_count(1)


def test_files(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    page.set_input_files("#file-input", ROOT / "examples" / "sign.png")
    expect(page.locator(".tile")).to_contain_text("The picture was shown once.")
    expect(page.locator("#stat-frames")).to_have_text("1")
    assert ask(page, "What does the sign say?") == "HELLO"
    page.click("#add")
    page.set_input_files("#file-input", ROOT / "README.md")
    expect(page.locator("#picker-error")).to_contain_text("cannot play README.md")
    page.set_input_files("#file-input", ROOT / "examples" / "signs.mp4")
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator("#stat-frames")).to_have_text(re.compile(r"^[3-9]"))


def test_an_address_that_the_server_follows(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    page.fill("#address", "ftp://nowhere")
    page.press("#address", "Enter")
    expect(page.locator("#picker-error")).not_to_be_empty()
    page.fill("#address", (ROOT / "examples" / "signs.mp4").as_uri())
    page.press("#address", "Enter")
    expect(page.locator(".tile .name")).to_have_text("signs.mp4")
    expect(page.locator(".tile img")).to_be_visible()
    assert page.locator(".tile img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 50
    first = page.locator(".tile img").get_attribute("src")
    expect(page.locator(".tile img")).not_to_have_attribute("src", first)  # it goes on
    expect(page.locator(".tile")).to_contain_text("The source has ended.")
    assert ask(page, "What was on the first sign?") == "HELLO"


def add_rule(page: Any, expected: str) -> None:
    page.click("#tab-watch")
    page.fill("#rule-expect", expected)
    page.fill("#rule-every", "0.5")
    page.press("#rule-every", "Enter")


def test_a_rule_tells_its_events_with_their_pictures(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "sample")
    page.click("#tab-watch")
    expect(page.locator("#rule-question")).to_have_value("What is on the picture now?")
    add_rule(page, "K4M")
    rule = page.locator("#rules li")
    expect(rule).to_contain_text("waits for K4M")
    expect(rule).to_contain_text("now: ")
    expect(rule.locator(".lamp")).to_have_text("off")
    expect(rule.locator(".lamp")).to_have_text("on")
    event = page.locator("#events li")
    expect(event).to_have_count(1)
    expect(event.locator(".answer")).to_have_text("K4M")
    expect(event.locator(".when")).to_have_text(re.compile(r"^0:(09|1\d)$"))
    expect(page.locator("#announcer")).to_have_text("Event of Sample: What is on the picture now? K4M")
    expect(page.locator("#unread")).to_be_hidden()  # it is seen as it comes
    expect(rule.locator(".lamp")).to_have_text("off")
    event.get_by_role("button", name="Show the picture").click()
    red = page.locator("#event-picture").evaluate(page_server.CORNER)
    assert red[0] > 180 and max(red[1:]) < 60, red
    page.keyboard.press("Escape")
    rule.get_by_role("button", name="Remove the rule").click()
    expect(rule).to_have_count(0)
    expect(event).to_have_count(1)
    page.reload()
    page.click("#tab-watch")
    expect(event).to_have_count(1)  # the server has it
    expect(page.locator("#unread")).to_be_hidden()


def test_events_of_other_streams_are_counted_until_they_are_seen(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "camera")
    add_rule(page, "K4M")
    expect(page.locator("#events li")).to_have_count(1)
    page.get_by_role("button", name="Remove the rule").click()
    page.click("#tab-questions")
    page.click("#tab-watch")
    page.click("#add")
    page.click("[data-source=sample]")
    expect(page.locator("#events li")).to_have_count(0)  # each stream has its own
    add_rule(page, "BUS")
    page.get_by_role("button", name="Choose Camera").click()
    expect(page.locator("#events li")).to_have_count(1)
    expect(page.locator("#rules li")).to_have_count(0)
    counted = page.locator(".tile").nth(1).locator(".count")
    expect(counted).to_have_text("1", timeout=60_000)
    expect(page.get_by_role("button", name="Choose Sample, 1 new")).to_be_visible()
    page.click("#tab-questions")
    page.get_by_role("button", name="Choose Sample").click()
    expect(page.locator("#unread-count")).to_have_text("1")
    page.locator("#tab-questions").press("ArrowRight")
    expect(page.locator("#tab-watch")).to_be_focused()
    expect(page.locator("#events .answer")).to_have_text("BUS")
    expect(page.locator("#unread")).to_be_hidden()
    expect(counted).to_be_hidden()


def test_a_rule_that_cannot_be_says_why(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "sample")
    add_rule(page, "?")
    expect(page.locator("#rule-error")).not_to_be_empty()
    expect(page.locator("#rules li")).to_have_count(0)
    expect(page.locator("#rule-expect")).to_have_value("?")


def test_the_list_of_calls_loads_nothing_from_elsewhere(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.address + "docs")
    paths = httpx.get(f"{server.address}openapi.json").json()["paths"]
    num_calls = sum(len(calls) for calls in paths.values())
    expect(page.locator(".call .method")).to_have_count(num_calls)
    expect(page.locator("nav a")).to_have_count(num_calls)
    page.get_by_role("link", name="POST streams/{id}/rules").click()
    call = page.locator("#post--v1-streams-stream_id-rules")
    expect(call).to_contain_text('"every"')
    call.get_by_role("link", name="WebhookRequest").click()
    expect(page.locator("#object-WebhookRequest")).to_contain_text("secret")
    assert page.evaluate(page_server.CONTRAST) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert len(asked) > 5 and all(url.startswith(server.address) for url in asked)
    policy = page.request.get(server.address + "docs").headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
    assert page.request.get(server.address + "redoc").status == 404


def test_questions_are_text(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "sample")
    ask(page, "<img src=x onerror=alert(1)> What do you see now?")
    assert page.locator("#history img").count() == 0
    assert "<img src=x" in page.locator("#history .asked").inner_text()


def test_a_question_can_be_stopped(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "sample")
    page.route("**/ask", lambda route: None)  # no answer comes
    page.fill("#question", "What do you see now?")
    page.press("#question", "Enter")
    expect(page.locator("#ask")).to_have_attribute("aria-label", "Stop the answer")
    page.press("#question", "Escape")
    expect(page.locator("#history li")).to_have_attribute("data-state", "stopped")
    expect(page.locator("#ask")).to_have_attribute("aria-label", "Ask")


def test_asks_for_a_key_and_refuses_a_wrong_one(open_page: Open) -> None:
    with serving(keys=("right key",)) as server:
        page = open_page(server.address)
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        page.wait_for_timeout(1500)
        expect(dialog).to_be_hidden()  # nobody is asked twice
        page.click("#enter-key")
        page.fill("#key", "wrong key")
        page.press("#key", "Enter")
        expect(page.locator("#key-error")).to_contain_text("does not know this key")
        page.fill("#key", "right key")
        page.press("#key", "Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#enter-key")).to_be_hidden()
        watch(page, "sample")
        add_rule(page, "HELLO")
        picture = page.locator("#events li img")
        expect(picture).to_be_visible(timeout=60_000)  # it is behind the key too
        assert "right key" not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
        page.reload()
        expect(page.locator(".tile")).to_have_count(1)  # the tab still has the key


def test_goes_on_when_the_server_comes_back(open_page: Open, tmp_path: Path) -> None:
    with serving(state_dir=tmp_path) as server:
        page = open_page(server.address)
        watch(page, "camera")
        server.stop()
        expect(page.locator(".notice")).to_contain_text("The server does not answer. Trying again in")
        expect(page.locator("#server-trouble")).not_to_be_empty()
        page.fill("#question", "What does the sign say?")
        page.press("#question", "Enter")
        expect(page.locator("#history .error")).to_contain_text("Is it still running?")
        before = page.locator("#stat-frames").inner_text()
        server.start()
        expect(page.locator(".tile")).to_have_attribute("data-state", "live", timeout=60_000)
        expect(page.locator("#server-trouble")).to_be_empty()
        expect(page.locator("#stat-frames")).not_to_have_text(before)
        page.click("text=Ask again")
        expect(page.locator("#history li").last.locator(".answer")).to_have_text("K4M")


def test_begins_anew_when_the_server_lost_the_stream(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "sample")
    page.evaluate(
        """async () => { const { data } = await (await fetch("v1/streams")).json();
                         await fetch(`v1/streams/${data[0].id}`, { method: "DELETE" }); }"""
    )
    expect(page.locator(".notice")).to_contain_text("The server no longer has this stream.")
    page.get_by_role("button", name="Choose a source").click()
    page.click("[data-source=sample]")
    expect(page.locator(".tile")).to_have_attribute("data-state", "live")
    expect(page.locator("#stat-frames")).to_have_text(re.compile(r"^[1-9]$"))


def test_waits_as_long_as_a_busy_server_asks(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    watch(page, "sample")
    refused = []
    busy = {"status": 429, "headers": {"retry-after": "2"}, "json": {"error": {"message": "busy"}}}

    def refuse(route: Any) -> None:
        refused.append(route.request.url)
        route.fulfill(**busy)

    page.route("**/frames*", refuse)
    expect(page.locator(".notice")).to_have_text("The server is busy. Trying again in 2 s.")
    page.wait_for_timeout(1500)
    assert len(refused) == 1
    page.route("**/ask", refuse)
    page.fill("#question", "What do you see now?")
    page.press("#question", "Enter")
    expect(page.locator("#history .error")).to_have_text("The server is busy. Ask again in 2 s.")
    page.unroute_all()
    expect(page.locator(".notice")).to_be_hidden()


def test_says_what_to_do_without_a_camera(server: PageServer, open_page: Open) -> None:
    deny = """navigator.mediaDevices.getUserMedia = async () => {
        throw new DOMException("no", "NotAllowedError"); };"""
    page = open_page(server.address, script=deny)
    page.click("[data-source=camera]")
    expect(page.locator("#picker-error")).to_contain_text("did not allow the camera")
    insecure = open_page(
        server.address, script="Object.defineProperty(navigator, 'mediaDevices', { value: undefined });"
    )
    insecure.click("[data-source=camera]")
    expect(insecure.locator("#picker-error")).to_contain_text("from localhost or over https")
    assert page.locator(".tile").count() == insecure.locator(".tile").count() == 0


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_window(server: PageServer, open_page: Open, width: int) -> None:
    page = open_page(server.address)
    page.set_viewport_size({"width": width, "height": 844})
    is_wider = """[document.documentElement, document.getElementById("history")].some(
        (one) => one.scrollWidth > one.clientWidth)"""
    assert not page.evaluate(is_wider)
    watch(page, "sample")
    ask(page, "W" * 300)
    assert not page.evaluate(is_wider)
    add_rule(page, "W" * 100)
    expect(page.locator("#rules li")).to_have_count(1)
    assert not page.evaluate(is_wider)
    page.click("#fork")
    expect(page.locator(".tile")).to_have_count(2)
    assert not page.evaluate(is_wider)
    page.click("#add")
    assert not page.evaluate(is_wider)
    assert page.evaluate("document.getElementById('picker').scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_names(server: PageServer, open_page: Open, scheme: str) -> None:
    page = open_page(server.address, color_scheme=scheme)
    expect(page.locator("#model-name")).to_have_text("builtin")
    assert page.evaluate(page_server.CONTRAST) == []
    watch(page, "sample")
    ask(page, "What do you see now?")
    assert page.evaluate(page_server.CONTRAST) == []
    add_rule(page, "HELLO")
    expect(page.locator("#events li").first).to_be_visible(timeout=60_000)
    assert page.evaluate(page_server.CONTRAST) == []
    page.click("#add")
    assert page.evaluate(page_server.CONTRAST) == []
    page.keyboard.press("Escape")
    expect(page.locator("#picker")).to_be_hidden()
    assert page.evaluate(page_server.NAMELESS) == []
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size") == len(
        page.locator("[id]").all()
    )


def test_theme_is_kept(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Use dark colours").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark


def test_works_from_the_keyboard(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    expect(page.locator("#model-name")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#theme")).to_be_focused()
    page.keyboard.press("Tab")
    sample = page.locator("[data-source=sample]")
    expect(sample).to_be_focused()
    assert sample.evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("What do you see now?")
    expect(page.locator("#stat-frames")).not_to_have_text("0")
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_attribute("data-state", "done")


def test_respects_reduced_motion(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address, reduced_motion="reduce")
    watch(page, "sample")
    assert page.locator(".dot").evaluate("(one) => getComputedStyle(one).animationName") == "none"


def test_loads_nothing_from_elsewhere(server: PageServer, open_page: Open) -> None:
    page = open_page(server.address)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    watch(page, "sample")
    assert len(asked) > 15
    assert all(url.startswith((server.address, "blob:", "data:")) for url in asked)
    policy = page.request.get(server.address).headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
