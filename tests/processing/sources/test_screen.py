"""The screen is read through the interface of each system."""

import shutil
import subprocess
import time

import pytest

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.sources import cameras
from infinitevl.processing.sources.opening import open_source


@pytest.mark.parametrize(
    ("platform", "opened", "interface"),
    [
        ("linux", ":7.1", "x11grab"),
        ("darwin", "Capture screen 0:none", "avfoundation"),
        ("win32", "desktop", "gdigrab"),
    ],
)
def test_each_system_is_asked_by_its_own_names(monkeypatch, platform, opened, interface):
    asked = []

    def fail(name, mode, *, format, options, timeout):
        asked.append((name, format, options["framerate"]))
        raise ValueError("no such screen")

    monkeypatch.setattr("av.open", fail)
    monkeypatch.setattr(cameras.sys, "platform", platform)
    monkeypatch.setenv("DISPLAY", ":7.1")
    for fps in (None, 4):
        with open_source("screen", fps=fps) as source, pytest.raises(SourceError, match="no such screen"):
            next(iter(source))
    assert source.live and asked == [(opened, interface, "10"), (opened, interface, "4")]


def test_without_a_display_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(cameras.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(InputError, match=r"DISPLAY is not set.*DISPLAY=:0"):
        open_source("screen")


@pytest.mark.skipif(not shutil.which("Xvfb"), reason="needs Xvfb")
def test_a_screen_gives_its_pixels(monkeypatch):
    with subprocess.Popen(["Xvfb", ":97", "-screen", "0", "320x240x24"]) as server:
        monkeypatch.setenv("DISPLAY", ":97")
        try:
            frame = _first_frame()
        finally:
            server.terminate()
    assert frame.image.shape == (240, 320, 3)


def _first_frame():
    for _ in range(50):
        try:
            with open_source("screen") as source:
                return next(iter(source))
        except SourceError:
            time.sleep(0.1)  # the server is starting
    raise AssertionError("no frame came")
