"""Take the pictures of the page for the README and docs/serving.md.

python -m tests.server.screenshots docs/page.png docs/page-watch.png
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.server import page_server

QUESTIONS = ("What was on the first sign?", "What is the sign on the red picture?", "What do you see now?")
EXPECTED = ("K4M", "BUS")
SIZE = {"width": 1280, "height": 800}


def take(page: Any, address: str, picture: Path, watching: Path | None) -> None:
    """Watch the sample with a camera beside it, ask about it and set rules, and take a picture of each."""
    page.goto(address)
    page.click("[data-source=camera]")
    page.wait_for_timeout(1500)
    _ask(page, "What does the sign say?")
    page.click("#add")
    page.click("[data-source=sample]")
    page.wait_for_timeout(12_500)
    for question in QUESTIONS:
        _ask(page, question)
    page.screenshot(path=picture)
    if watching is not None:
        _watch(page)
        page.screenshot(path=watching)


def _watch(page: Any) -> None:
    page.click("#tab-watch")
    for expected in EXPECTED:
        page.fill("#rule-expect", expected)
        page.fill("#rule-every", "1")
        page.press("#rule-every", "Enter")
        page.wait_for_selector(f".waits b:text-is('{expected}')")
    page.wait_for_selector("#events li:nth-child(3)", timeout=90_000)
    page.wait_for_selector("#events li:first-child img:not([hidden])")
    page.wait_for_selector(".rule[data-on=true]")
    page.evaluate("document.activeElement.blur()")


def _ask(page: Any, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector("#history li:last-child[data-state=done]")


def main(pictures: list[Path]) -> None:
    """Start a server and a browser, and end them."""
    with (
        tempfile.TemporaryDirectory() as folder,
        page_server.serving() as server,
        sync_playwright() as started,
    ):
        film = page_server.write_camera_file(Path(folder) / "sign.mjpeg")
        arguments = [*page_server.CHROMIUM, f"--use-file-for-fake-video-capture={film}"]
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        take(page, server.address, pictures[0], pictures[1] if len(pictures) > 1 else None)
        browser.close()


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
