"""Files, folders and iterators give every frame, in order, at its real time."""

import io
import logging
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.sources.frames import Frame, Sampler
from infinitevl.processing.sources.opening import natural_key, open_source
from infinitevl.processing.sources.video_file import VideoFile
from tests.processing.media import (
    break_packets,
    encoded,
    make_picture,
    number_of,
    numbered_frame,
    write_video,
)

CLOSED_BY_OTHERS = """
import sys, threading, time
from infinitevl.processing.sources.video_file import VideoFile
for i in range(150):
    source = VideoFile(sys.argv[1])
    reader = threading.Thread(target=lambda: list(source))
    reader.start()
    time.sleep(0.0004 * (i % 30))
    source.close()
    reader.join()
"""


def times_of(source: object, **options: object) -> list[float]:
    with open_source(source, **options) as frames:
        return [round(frame.time, 3) for frame in frames]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
@pytest.mark.parametrize("start", [0, 25])
def test_no_frame_of_a_file_is_lost_and_times_start_at_zero(tmp_path: Path, name: str, start: int) -> None:
    path = write_video(tmp_path / name, list(range(30)), start=start)
    for address in (path, str(path), f"file://{path}"):
        with open_source(address) as source:
            assert not source.live and source.size == (48, 64)
            frames = list(source)
        assert [number_of(frame.image) for frame in frames] == list(range(30))
        assert [frame.time for frame in frames] == pytest.approx([n / 10 for n in range(30)], abs=2e-3)
        assert frames[0].image.dtype == np.uint8 and frames[0].image.shape == (48, 64, 3)
        assert source.dropped == 0 and source.problem is None


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [0, 1, 2, 10, 11, 30, 31])
    assert times_of(path) == [0, 0.1, 0.2, 1.0, 1.1, 3.0, 3.1]
    assert times_of(path, fps=1) == [0, 1.0, 3.0]
    assert times_of(path, fps=5) == [0, 0.2, 1.0, 3.0]


def test_frames_are_sampled_at_fps_with_their_own_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(31)))
    assert times_of(path, fps=2) == [0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert times_of(path, fps=4)[:4] == [0, 0.3, 0.5, 0.8]
    assert len(times_of(path, fps=1000)) == 31
    assert open_source(path, fps=2).num_frames == 6 and open_source(path).num_frames == 31


@given(st.floats(0.1, 60), st.lists(st.floats(0, 0.5), min_size=1, max_size=60))
def test_a_sampler_keeps_one_frame_for_each_tick_that_has_one(fps: float, gaps: list[float]) -> None:
    times = np.cumsum(gaps).tolist()
    sampler = Sampler(fps)
    kept = [time for time in times if sampler.keeps(time)]
    ticks = [int(time * fps + 1e-6) for time in times]
    assert [int(time * fps + 1e-6) for time in kept] == sorted(set(ticks))
    assert kept == [times[ticks.index(tick)] for tick in sorted(set(ticks))]


def test_a_video_taken_upright_is_turned_as_its_file_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0, 1, 2])
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 44
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = clockwise
    path.write_bytes(data)
    assert next(iter(open_source(path))).image.shape == (64, 48, 3)


def test_a_file_cut_in_half_gives_its_frames_and_then_says_how_many(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", list(range(100)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 10])
    frames = []
    with open_source(path) as source, pytest.raises(SourceError) as caught:
        frames.extend(source)
    assert len(frames) > 20
    assert f"{len(frames)} frames could be read" in str(caught.value) and "of 10.0 seconds" in str(
        caught.value
    )


def test_a_mostly_readable_file_gives_its_frames_and_reports(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "a.mkv", list(range(100)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with caplog.at_level(logging.WARNING), open_source(path) as source:
        frames = list(source)
    assert len(frames) > 60
    assert f"{len(frames)} frames could be read" in source.problem and source.problem in caplog.text


def test_a_packet_that_cannot_be_decoded_costs_few_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(40)), codec="libx264")
    break_packets(path, 18, 18)
    with open_source(path) as source:
        frames = list(source)
    assert 30 <= len(frames) < 40 and number_of(frames[-1].image) == 39 % 32
    assert "damaged" in source.problem


@pytest.mark.parametrize("content", [b"", b"not a video", bytes(5000)], ids=["empty", "text", "zeros"])
def test_what_is_no_video_is_a_source_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="empty file" if not content else "No video can be opened"):
        list(open_source(path))


def test_a_truncated_mp4_is_a_source_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(20)))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(SourceError):
        list(open_source(path))


def test_a_missing_file_and_a_sound_file_are_source_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        open_source(tmp_path / "none.mp4")
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(SourceError, match="only: audio"):
        open_source(tmp_path / "a.wav")


def test_bytes_that_name_network_addresses_do_not_reach_them() -> None:
    session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    session += "a=rtpmap:96 H264/90000\n"
    with pytest.raises(SourceError, match="Invalid data"):
        VideoFile(io.BytesIO(session.encode()))


def test_closing_a_file_ends_the_iteration(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "a.mp4", list(range(30))))
    seen = 0
    for _ in source:
        seen += 1
        if seen == 5:
            source.close()
            source.close()
    assert seen == 5 and source.problem is None


def test_another_thread_may_close_a_file_while_it_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(30)))
    done = subprocess.run([sys.executable, "-c", CLOSED_BY_OTHERS, str(path)], check=False)
    assert done.returncode == 0  # a container that goes while FFmpeg reads it ends the process


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1, 2):
        (tmp_path / f"page {number}.png").write_bytes(encoded(Image.fromarray(numbered_frame(number))))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._page 3.png").write_bytes(b"a hidden companion")
    with open_source(tmp_path) as source:
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == [1, 2, 9, 10]
    assert [frame.time for frame in frames] == [0, 0.5, 1.0, 1.5] and source.num_frames == 4
    assert times_of(tmp_path, fps=1) == [0, 1, 2, 3]


def test_natural_order_mixes_digits_and_letters() -> None:
    names = ["b1", "a10", "a2", "10", "9", "a", "2b", "A3", ""]
    assert sorted(names, key=natural_key) == ["", "2b", "9", "10", "a", "a2", "A3", "a10", "b1"]


def test_an_empty_folder_or_a_broken_picture_in_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no pictures"):
        open_source(tmp_path)
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"1\.png"):
        list(open_source(tmp_path))


def test_an_iterator_may_give_any_picture_with_or_without_its_time() -> None:
    array = numbered_frame(4)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for items in (
        [array, tensor, Image.fromarray(array), encoded(Image.fromarray(array))],
        np.stack([array] * 4),
    ):
        frames = list(open_source(items))
        assert all(number_of(frame.image) == 4 for frame in frames)
        assert [frame.time for frame in frames] == [0, 0.5, 1.0, 1.5]
    assert times_of([(array, 3), (array, 3.5), Frame(array, 9.0)]) == [3, 3.5, 9]
    assert times_of([array] * 3, fps=10) == [0, 0.1, 0.2]
    assert times_of([(array, n / 10) for n in range(11)], fps=2) == [0, 0.5, 1.0]


def test_an_iterator_is_read_no_faster_than_its_frames_are_taken() -> None:
    given = []

    def camera() -> Iterator[np.ndarray]:
        for number in range(100):
            given.append(number)
            yield numbered_frame(number)

    with open_source(camera()) as source:
        next(iter(source))
    assert given == [0]


def test_time_that_goes_back_is_an_input_error() -> None:
    picture = make_picture()
    with pytest.raises(InputError, match="goes back"):
        times_of([(picture, 2.0), (picture, 1.0)])


@pytest.mark.parametrize("bad", [3, None, b"bytes", [("frame", "noon")], [(1, 2, 3)], [object()]], ids=str)
def test_what_is_no_source_is_an_input_error(bad: object) -> None:
    with pytest.raises(InputError):
        list(open_source(bad))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_an_impossible_fps_is_refused(fps: float) -> None:
    with pytest.raises(InputError, match="fps"):
        open_source([make_picture()], fps=fps)


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.ts"])
def test_the_times_of_all_frames_are_known_without_decoding(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, list(range(33)), codec="libx264")
    with VideoFile(path) as file:
        times = file.shown().times
    assert times == pytest.approx([n / 10 for n in range(33)], abs=2e-3)
    assert times == pytest.approx([frame.time for frame in VideoFile(path)])


@pytest.mark.parametrize("name", ["", "  "])
def test_a_source_without_a_name_is_not_the_current_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_picture(8, 8).save(tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no name"):
        open_source(name)
