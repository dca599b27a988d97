"""From a live source the newest frame wins; what is lost comes back; what is closed stays closed."""

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.sources import cameras, live
from infinitevl.processing.sources.cameras import camera_opener, stream_opener
from infinitevl.processing.sources.frames import Frame
from infinitevl.processing.sources.live import LiveSource, Mailbox, WallClock, paced
from infinitevl.processing.sources.opening import open_source
from tests.processing.media import encoded, make_picture, number_of, numbered_frame, write_video
from tests.processing.server import served


def frame(number: int) -> Frame:
    return Frame(numbered_frame(number), number / 10)


class Connections:
    """Opens scripted connections, one after the other: frames to give, or errors to raise."""

    def __init__(self, *scripts: Iterable[Frame | Exception]) -> None:
        self.scripts = list(scripts)
        self.waits: list[float] = []
        self.opened = 0

    def __call__(self) -> Iterator[Frame]:
        self.opened += 1
        script = self.scripts.pop(0) if self.scripts else [SourceError("nobody there")]
        for step in script:
            if isinstance(step, Exception):
                raise step
            yield step

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def source(self, **options: object) -> LiveSource:
        return LiveSource(self, "the camera", wait=self.wait, **options)


def test_a_mailbox_keeps_the_newest_frame_and_counts_the_rest() -> None:
    mailbox = Mailbox()
    for number in range(5):
        mailbox.put(frame(number))
    mailbox.close()
    assert mailbox.take().time == 0.4 and mailbox.dropped == 4
    assert mailbox.take() is None and mailbox.take() is None


def test_a_frame_says_how_many_were_dropped_before_it() -> None:
    mailbox, told = Mailbox(), []
    for count in (1, 4, 2):
        for number in range(count):
            mailbox.put(frame(number))
        told.append(mailbox.take().dropped)
    assert told == [0, 3, 1] and mailbox.dropped == 4


@pytest.mark.parametrize("ended", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
def test_frames_that_end_in_whatever_exception_leave_nobody_waiting(ended: BaseException) -> None:
    def frames() -> Iterator[Frame]:
        yield frame(0)
        raise ended

    taken = []
    with pytest.raises(SourceError, match="broke"), open_source(frames(), live=True) as source:
        taken += source
    assert source.dropped + len(taken) <= 1


def test_an_error_comes_after_the_frame_that_waits() -> None:
    mailbox = Mailbox()
    mailbox.put(frame(1))
    mailbox.close(SourceError("lost"))
    assert mailbox.take().time == 0.1
    with pytest.raises(SourceError):
        mailbox.take()


def test_a_slow_reader_gets_the_newest_frame_and_every_frame_is_accounted_for() -> None:
    first_taken, all_given = threading.Event(), threading.Event()

    def camera() -> Iterator[Frame]:
        yield frame(0)
        first_taken.wait(5)
        for number in range(1, 50):
            yield frame(number)
        all_given.set()

    seen = []
    with LiveSource(camera, "camera", reconnects=False) as source:
        for got in source:
            seen.append(number_of(got.image))
            first_taken.set()
            all_given.wait(5)
    assert seen == [0, 49 % 32] and source.dropped == 48 and source.live and source.size == (48, 64)


def test_a_reader_that_keeps_up_loses_nothing() -> None:
    taken = threading.Semaphore(1)

    def camera() -> Iterator[Frame]:
        for number in range(20):
            taken.acquire(timeout=5)
            yield frame(number)

    with LiveSource(camera, "camera", reconnects=False) as source:
        times = []
        for got in source:
            times.append(got.time)
            taken.release()
    assert times == [n / 10 for n in range(20)] and source.dropped == 0


def test_frames_left_out_by_fps_are_not_counted_as_dropped() -> None:
    with LiveSource(lambda: [frame(n) for n in range(30)], "camera", fps=1, reconnects=False) as source:
        frames = list(source)
    assert frames[-1].time == 2.0 and source.dropped + len(frames) == 3


def test_a_lost_source_is_opened_again_with_growing_pauses() -> None:
    gone = SourceError("gone")
    connections = Connections([frame(0), gone], [gone], [gone], [frame(1)], [gone], [frame(2)])
    source = connections.source(max_attempts=4)
    frames = []
    with pytest.raises(SourceError, match=r"the camera is lost after 4 attempts: nobody there"):
        frames.extend(source)
    assert connections.waits == [0.5, 1, 2, 0.5, 1, 0.5, 1, 2]
    assert source.reconnected == 2 and source.dropped + len(frames) == 3


def test_pauses_stay_below_a_limit() -> None:
    connections = Connections([frame(0)])
    with pytest.raises(SourceError):
        list(connections.source(max_attempts=8))
    assert connections.waits == [0.5, 1, 2, 4, 8, 8, 8]


def test_a_source_that_never_opened_is_an_error_at_once() -> None:
    connections = Connections()
    with pytest.raises(SourceError, match=r"^nobody there Check that it is on"):
        list(connections.source())
    assert connections.opened == 1 and connections.waits == []


def test_an_unexpected_error_in_the_reader_reaches_the_caller() -> None:
    connections = Connections([frame(0), ZeroDivisionError("oops")])
    with pytest.raises(SourceError, match="oops"):
        list(connections.source())
    with pytest.raises(InputError):
        list(open_source([make_picture(), "no such picture"], live=True))


def test_closing_ends_the_thread_and_the_iteration() -> None:
    stop = threading.Event()
    closed = []

    def camera() -> Iterator[Frame]:
        try:
            number = 0
            while not stop.wait(0.001):
                number += 1
                yield frame(number)
        finally:
            closed.append(True)

    source = LiveSource(camera, "camera")
    for count, _ in enumerate(source):
        if count == 3:
            source.close()
            source.close()
    assert not source._thread.is_alive() and closed == [True]


def test_closing_wakes_a_reader_that_waits_to_reconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_WAIT", 600.0)
    monkeypatch.setattr(live, "LONGEST_WAIT", 600.0)
    source = LiveSource(Connections([frame(0)]), "camera")
    next(iter(source))
    time.sleep(0.05)
    start = time.monotonic()
    source.close()
    assert time.monotonic() - start < 60 and not source._thread.is_alive()


def test_a_source_closed_before_it_began_gives_nothing() -> None:
    connections = Connections([frame(0)])
    source = connections.source()
    source.close()
    assert list(source) == [] and connections.opened == 0


def test_times_follow_the_stamps_within_a_connection_and_the_clock_between() -> None:
    now = [100.0]
    times = WallClock(lambda: now[0])
    place = times.connection()
    assert place(5000.0) == 0
    now[0] = 100.35
    assert place(5000.2) == pytest.approx(0.2)
    now[0] = 110.0
    place = times.connection()
    assert place(3.0) == pytest.approx(10.0)
    assert place(3.5) == pytest.approx(10.5)
    assert place(1.5) == pytest.approx(10.5), "time never goes back"
    now[0] = 120.0
    assert place(4.0) == pytest.approx(20.0), "stamps far from the clock are anchored anew"
    assert place(None) == pytest.approx(20.0)


def test_a_file_can_be_played_at_its_own_pace() -> None:
    now = [0.0]
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        now[0] += seconds

    frames = list(paced([frame(0), frame(5), frame(20)], lambda: now[0], sleep))
    assert len(frames) == 3 and slept == [0.5, 1.5]


def test_a_file_played_live_ends_with_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(6)), rate=50)
    with open_source(path, live=True) as source:
        frames = list(source)
    assert source.live and len(frames) + source.dropped == 6 and number_of(frames[-1].image) == 5


def mpeg_ts(tmp_path: Path) -> bytes:
    return write_video(tmp_path / "a.ts", list(range(40)), rate=25, format="mpegts").read_bytes()


def test_an_http_stream_is_read_live_and_again_when_the_server_hangs_up(tmp_path: Path) -> None:
    data = mpeg_ts(tmp_path)

    def stream(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "video/mp2t")
        handler.end_headers()
        handler.wfile.write(data)

    with served({"/live": stream}) as (address, asked):
        opener = stream_opener(f"{address}/live")
        waits: list[float] = []
        source = LiveSource(opener, "the stream", wait=waits.append)
        times = []
        for got in source:
            times.append(got.time)
            if len(asked) >= 3:
                source.close()
    assert source.live and len(asked) >= 3 and waits[0] == 0.5
    assert times == sorted(times) and len(times) + source.dropped > 40


def test_a_motion_jpeg_stream_is_read_live() -> None:
    def stream(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        for number in range(200):
            data = encoded(make_picture(64, 48, number), "JPEG")
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            handler.wfile.write(head.encode() + data + b"\r\n")

    with served({"/camera": stream}) as (address, _), open_source(f"{address}/camera") as source:
        assert source.live
        first = next(iter(source))
    assert first.image.shape == (48, 64, 3) and first.time >= 0


def test_a_recorded_file_at_an_address_is_not_live(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4", list(range(20)), movflags="faststart").read_bytes()

    def file(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    with served({"/a.mp4?key=1": file}) as (address, _), open_source(f"{address}/a.mp4?key=1") as source:
        assert not source.live and len(list(source)) == 20


def test_an_address_that_refuses_is_a_source_error() -> None:
    for address in ("http://127.0.0.1:1/live", "rtsp://127.0.0.1:1/live"):
        with open_source(address) as source, pytest.raises(SourceError, match="refused"):
            list(source)


def test_a_camera_that_is_not_there_is_a_source_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("camera:77", "/dev/video77"):
        with open_source(name) as source, pytest.raises(SourceError, match=r"/dev/video77"):
            list(source)
    with pytest.raises(InputError, match="is not a camera"):
        open_source("camera:front")
    monkeypatch.setattr(cameras.sys, "platform", "darwin")
    camera_opener("camera:FaceTime")


@pytest.mark.parametrize("source", ["/dev/video98", "rtsp://127.0.0.1:9/nobody"])
def test_a_source_that_is_not_there_is_told_in_one_sentence(source: str) -> None:
    wanted = rf"^{source} cannot be opened: [^:'/]+\. Check that it is on and can be reached\.$"
    with open_source(source) as frames, pytest.raises(SourceError, match=wanted):
        list(frames)
