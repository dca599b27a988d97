"""Take the picture of the page for docs/serving.md: python -m tests.server.screenshots docs/page.png"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.server import page_server

QUESTIONS = ("What was on the first sign?", "What is the sign on the red picture?", "What do you see now?")
SIZE = {"width": 1280, "height": 800}


def take(page: Any, address: str, picture: Path) -> None:
    """Watch the sample for 13 seconds with a camera beside it, ask about it, and take a picture."""
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


def _ask(page: Any, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector("#history li:last-child[data-state=done]")


def main(picture: Path, scheme: str) -> None:
    """Start a server and a browser, and end them."""
    with (
        tempfile.TemporaryDirectory() as folder,
        page_server.serving() as server,
        sync_playwright() as started,
    ):
        film = page_server.write_camera_file(Path(folder) / "sign.mjpeg")
        arguments = [*page_server.CHROMIUM, f"--use-file-for-fake-video-capture={film}"]
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        take(browser.new_page(viewport=SIZE, color_scheme=scheme), server.address, picture)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), scheme=sys.argv[2] if len(sys.argv) > 2 else "light")
