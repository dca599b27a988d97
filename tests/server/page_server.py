"""A server with the built-in model, and a browser, for the tests of the page."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image, ImageDraw, ImageFont

from infinitevl import Engine, load
from infinitevl.model.opening import description_of
from infinitevl.server.app import create_app
from infinitevl.server.settings import ServerSettings
from tests.project.source import ROOT
from tests.server.serving import until

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
# What text on the page stands out from: the colours of the element and of what is painted behind it.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    if (!element) return [1, 1, 1];
    const [r, g, b, a] = rgb(getComputedStyle(element).backgroundColor);
    const under = a === 1 ? [0, 0, 0] : ground(element.parentElement);
    return [r, g, b].map((value, i) => value * a + under[i] * (1 - a));
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
    const isShown = element.checkVisibility() && element.getBoundingClientRect().width > 1;
    if (!own.length || !isShown || element.closest(".tile, :disabled, .hidden, .skip")) continue;
    const [a, b] = [light(rgb(getComputedStyle(element).color).slice(0, 3)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${element.tagName}#${element.id}.${element.className}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


# Collects every text that an answer shows while it grows.
WATCH_ANSWERS = """() => {
  window.seen = new Set();
  const note = () => document.querySelectorAll(".answer").forEach((one) => window.seen.add(one.textContent));
  new MutationObserver(note).observe(document.getElementById("history"), { subtree: true, childList: true });
}"""
HEIGHTS = """() => {
  const heights = (name) => document.querySelector(`#chart .${name}`).getAttribute("d").slice(1).split("L")
    .map((point) => Number(point.split(" ")[1]));
  return { tokens: heights("tokens"), memory: heights("memory") };
}"""
# The colour near the corner of a picture.
CORNER = """async (image) => {
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
  canvas.drawImage(image, 0, 0);
  return [...canvas.getImageData(9, 9, 1, 1).data].slice(0, 3);
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input, select, dialog, section")].filter((one) =>
  !(one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") || one.labels?.length
    || one.textContent.trim())).map((one) => one.outerHTML)"""


class PageServer:
    """The built-in model behind an address, which can be stopped and started again.

    keys, state_dir: as the server's settings have them.
    """

    def __init__(self, keys: tuple[str, ...] = (), state_dir: Path | None = None) -> None:
        self.settings = ServerSettings(
            keys=keys,
            description=description_of("builtin"),
            secret=b"a secret of the tests",
            folders=(ROOT / "examples",),
            state_dir=state_dir,
            save_every=0.2,
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        """Serve; returns when calls are taken."""
        model, processor = load("builtin")
        app = create_app(Engine(model, processor, num_slots=6), self.settings)
        config = uvicorn.Config(app, port=self.port, log_level="warning", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started, seconds=60)

    def stop(self) -> None:
        """End as after SIGTERM."""
        self._server.should_exit = True
        self._thread.join(30)


@contextmanager
def serving(**settings: Any) -> Iterator[PageServer]:
    """A server that ends with the block."""
    server = PageServer(**settings)
    try:
        yield server
    finally:
        server.stop()


def write_camera_file(path: Path) -> Path:
    """Film for Chromium's fake camera: a sign that says K4M, 640 x 480, motion JPEG."""
    film = Image.new("RGB", (640, 480), "#2f55d4")
    font = ImageFont.load_default(150)
    ink = "#e8ff7a"
    place, middle = (320, 240), "mm"
    ImageDraw.Draw(film).text(place, "K4M", ink, font, middle, stroke_width=4, stroke_fill=ink)
    with path.open("wb") as file:
        for _ in range(10):
            film.save(file, "JPEG", quality=95)
    return path
