"""Recorded files of every origin come with the frames, times and shapes that a player shows."""

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.processor.vision_info import process_vision_info
from infinitevl.processing.sources.opening import open_source
from infinitevl.processing.sources.recording import Timeline
from tests.processing.media import hide_start, number_of, set_matrix, write_flat, write_video


def asked(path: object, **element: object) -> tuple[np.ndarray, float]:
    """The frames that a chat shows, and their number a second."""
    message = {"role": "user", "content": [{"type": "video", "video": str(path), **element}]}
    _, (video,), kwargs = process_vision_info([message], return_video_kwargs=True)
    return video.numpy(), kwargs["fps"][0]


def test_what_an_edit_list_hides_is_neither_counted_nor_shown(tmp_path: Path) -> None:
    path = hide_start(write_video(tmp_path / "a.mp4", list(range(30)), codec="libx264"), 1.7)
    with open_source(path) as source:
        assert source.num_frames == 13
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == list(range(17, 30))
    assert frames[0].time == 0
    video, rate = asked(path, nframes=6)
    assert [number_of(frame) for frame in video] == [17, 19, 22, 24, 27, 29]
    assert len(video) / rate == pytest.approx(1.3)


def test_joined_recordings_run_on(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{n}.ts", list(range(20)), codec="libx264").read_bytes() for n in "ab"]
    path = tmp_path / "ab.ts"
    path.write_bytes(b"".join(parts))
    with open_source(path) as source:
        frames = list(source)
    assert [frame.time for frame in frames] == pytest.approx([n / 10 for n in range(40)])
    with open_source(path, fps=2) as source:
        assert [round(frame.time, 1) for frame in source] == [n / 2 for n in range(8)]
    video, rate = asked(path, nframes=4)
    assert [number_of(frame) for frame in video] == [0, 13, 6, 19]
    assert len(video) / rate == pytest.approx(4.0)


def test_a_clock_that_leaps_or_stutters_is_followed_as_far_as_it_may_be_meant() -> None:
    def placed(stamps: list[float | None], largest_gap: float = 10.0) -> list[float]:
        timeline = Timeline(1.0, largest_gap)
        return [timeline.place(stamp) for stamp in stamps]

    assert placed([5, 6, 7, None, 9]) == [0, 1, 2, 3, 4]
    assert placed([0, 1, 2, 1, 3]) == [0, 1, 2, 2, 3]  # a jitter of one frame
    assert placed([7, 8, 9, 0, 1]) == [0, 1, 2, 3, 4]
    assert placed([0, 1, 60, 61]) == [0, 1, 2, 3]
    assert placed([0, 1, 60, 61], float("inf")) == [0, 1, 60, 61]
    assert placed([-3, -2, -1]) == [0, 1, 2]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.gif", "a.avi"])
def test_a_last_frame_that_rests_is_no_damage(tmp_path: Path, name: str) -> None:
    path, stamps = tmp_path / name, [0, 100, 200, 300, 400]
    if name == "a.gif":
        shades = [Image.new("L", (56, 56), 40 * n) for n in range(5)]
        shades[0].save(path, save_all=True, append_images=shades[1:], duration=[100] * 4 + [3000], loop=0)
    else:
        codec = {"a.webm": "libvpx", "a.avi": "mpeg4"}.get(name, "libx264")
        write_flat(path, [40 * n for n in range(5)], stamps, last_ms=8000, codec=codec)
    with open_source(path) as source:
        assert [round(frame.time, 1) for frame in source] == [0, 0.1, 0.2, 0.3, 0.4]
        assert source.problem is None
    if name in ("a.mp4", "a.mkv", "a.gif"):  # a chat hears of the rest
        video, rate = asked(path, fps=1)
        assert len(video) / rate == pytest.approx(3.4 if name == "a.gif" else 8.4, rel=0.01)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.ts"])
def test_sound_that_is_longer_than_the_picture_is_no_damage(tmp_path: Path, name: str) -> None:
    codec = "libvpx" if name == "a.webm" else "libx264"
    path = write_flat(tmp_path / name, [10 * n for n in range(10)], sound_s=4, codec=codec)
    with open_source(path) as source:
        assert len(list(source)) == 10 and source.problem is None


def test_a_matroska_file_as_long_as_it_says_is_whole_whatever_its_duration(tmp_path: Path) -> None:
    """Where a last frame's packet does not say how long it rests, only the header's duration does."""
    path = write_flat(tmp_path / "a.mkv", [10 * n for n in range(10)])
    data = bytearray(path.read_bytes())
    duration = data.find(bytes.fromhex("448988")) + 3
    struct.pack_into(">d", data, duration, 10_000.0)
    path.write_bytes(data)
    with open_source(path) as source:
        assert len(list(source)) == 10 and source.duration == 10 and source.problem is None
    path.write_bytes(data[:-100])
    with open_source(path) as source, pytest.raises(SourceError, match="damaged"):
        list(source)


def test_a_file_that_lost_its_end_still_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(60)), movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 8 // 10])
    with open_source(path) as source:
        assert 20 < len(list(source)) < 60 and "damaged" in source.problem


@pytest.mark.parametrize(
    ("matrix", "bright"),
    [
        ((1, 0, 0, 1), (0, 0)),
        ((0, 1, -1, 0), (0, 1)),  # a quarter clockwise
        ((-1, 0, 0, -1), (1, 1)),
        ((0, -1, 1, 0), (1, 0)),
        ((-1, 0, 0, 1), (0, 1)),  # mirrored
        ((1, 0, 0, -1), (1, 0)),
        ((0, 1, 1, 0), (0, 0)),  # transposed
        ((0, -1, -1, 0), (1, 1)),
        ((0, 0, 0, 0), (0, 0)),  # no matrix at all
    ],
)
def test_a_display_matrix_turns_and_mirrors(tmp_path: Path, matrix: tuple, bright: tuple) -> None:
    """The bright corner is at the top on the left of what is stored, and the picture is broad."""
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:24, :48] = 255
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    set_matrix(path, *matrix)
    with open_source(path) as source:
        size = source.size
        (frame,) = source
    rows, columns = (side // 2 for side in size)
    assert frame.image.shape[:2] == size == ((96, 48) if matrix[1] else (48, 96))
    quarters = frame.image.reshape(2, rows, 2, columns, 3).mean((1, 3, 4))
    assert quarters[bright] > 240 and quarters.sum() < 270


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(4, 3), 85), (Fraction(1, 2), 32), (None, 64)])
def test_pixels_that_are_not_square_are_scaled(tmp_path: Path, aspect: Fraction | None, width: int) -> None:
    path = write_flat(tmp_path / "a.mkv", [0, 50, 100], aspect=aspect)
    with open_source(path) as source:
        assert source.size == (48, width)
        assert all(frame.image.shape == (48, width, 3) for frame in source)
    if aspect == Fraction(1, 2):
        assert asked(path, nframes=2, min_pixels=3136, max_pixels=28 * 28 * 6)[0].shape[2:] == (84, 56)


def test_a_chat_chooses_frames_by_time_where_the_rate_varies(tmp_path: Path) -> None:
    stamps = [16 * n for n in range(60)] + [1000 * n for n in range(1, 11)]
    path = write_flat(tmp_path / "a.mp4", [stamp // 40 for stamp in stamps], stamps, last_ms=1000)

    def seconds(**element: object) -> list[float]:
        return [round(float(frame.mean()) * 40 / 1000) for frame in asked(path, **element)[0]]

    assert seconds(fps=1) == list(range(10))
    assert asked(path, fps=1)[1] == pytest.approx(10 / 11)
    assert seconds(fps=1, video_start=5, video_end=8) == [5, 6, 7, 8]
    assert seconds(video_start=3.2, video_end=3.8, nframes=2) == [3, 3]  # nothing moves there


def test_a_header_that_states_the_unit_of_its_clock_is_not_believed(tmp_path: Path) -> None:
    stamps = [round(n * 1000 / 15 + n * 7919 % 17) for n in range(60)]
    path = write_flat(tmp_path / "a.webm", list(range(60)), stamps, codec="libvpx", live="1")
    video, rate = asked(path, fps=2)
    assert len(video) == 8 and rate == pytest.approx(2, rel=0.05)
    with open_source(path) as source:
        assert source.fps < 100


@pytest.mark.parametrize(
    "name", ["2026-01-05T13:30:00.mp4", "concat:a.mp4", "file:b.mp4", "data:c.mp4", "a%03d.mp4"]
)
def test_a_file_is_a_file_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.replace(write_video(tmp_path / "x.mp4", list(range(10))), name)
    for given in (name, f"./{name}", os.path.abspath(name), Path(name)):
        with open_source(given) as source:
            assert len(list(source)) == 10
        assert len(asked(given)[0]) == 4


def test_an_animated_webp_is_a_video(tmp_path: Path) -> None:
    shades = [Image.new("RGB", (56, 84), (25 * n,) * 3) for n in range(10)]
    path = tmp_path / "a.webp"
    shades[0].save(path, save_all=True, append_images=shades[1:], duration=200, lossless=True)
    with open_source(path) as source:
        assert source.size == (84, 56) and source.num_frames == 10
        frames = list(source)
    assert [frame.time for frame in frames] == pytest.approx([n / 5 for n in range(10)])
    assert [round(frame.image.mean() / 25) for frame in frames] == list(range(10))
    video, rate = asked(path, fps=2)
    assert len(video) / rate == pytest.approx(2.0)
    assert [round(float(frame.mean()) / 25) for frame in video] == [0, 3, 6, 9]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SourceError, match=r"a\.webp"):
        list(open_source(path))


def test_transparency_is_shown_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((56, 56, 4), np.uint8)
    pixels[:, 28:, 3] = 255
    pictures = [Image.fromarray(pixels), Image.fromarray(255 - pixels[::-1])]
    for name in ("a.gif", "a.png"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=100, disposal=2)
        with open_source(tmp_path / name) as source:
            first = next(iter(source)).image
        assert (first[:, :28] > 250).all() and (first[:, 28:] < 5).all(), name


def test_sound_with_a_cover_is_said_to_be_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=48000)
        for block in range(50):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), "s16", "stereo")
            silence.rate, silence.pts = 48000, 960 * block
            container.mux(sound.encode(silence))
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8)).reformat(format="yuvj420p")
        container.mux(cover.encode(frame))
    with av.open(str(path)) as container:
        is_cover = [s.disposition & av.stream.Disposition.attached_pic for s in container.streams.video]
    assert any(is_cover)
    with pytest.raises(SourceError, match=r"only: .*a cover picture"):
        open_source(path)


def test_frames_with_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(4)))
    monkeypatch.setattr("infinitevl.processing.sources.container.MAX_PIXELS", 64 * 48)
    assert len(list(open_source(path))) == 4
    monkeypatch.setattr("infinitevl.processing.sources.container.MAX_PIXELS", 64 * 48 - 1)
    for use in (open_source, asked):
        with pytest.raises(SourceError, match="64x48 pixels a frame, more than 3071"):
            use(path)


def test_a_stream_that_grows_is_refused_where_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []
    for side in (64, 1280):
        part = tmp_path / f"{side}.ts"
        with av.open(str(part), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame(side, side, "yuv420p")))
            container.mux(stream.encode())
        parts.append(part.read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    monkeypatch.setattr("infinitevl.processing.sources.container.MAX_PIXELS", 100 * 100)
    frames = []
    with open_source(tmp_path / "a.ts") as source, pytest.raises(SourceError):
        frames.extend(source)
    assert all(frame.image.shape == (64, 64, 3) for frame in frames)


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_read(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.png"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    picture = {"role": "user", "content": [{"type": "image", "image": str(path)}]}
    with pytest.raises(InputError, match=f"is a {what}"):
        process_vision_info([picture])
    with pytest.raises(SourceError, match=f"is a {what}"):
        asked(path)
    if what == "pipe":
        with pytest.raises(SourceError, match="is a pipe"):
            open_source(path)
        with pytest.raises(InputError, match="is a pipe"):
            list(open_source(tmp_path))


def test_a_playlist_in_a_file_reaches_no_address_and_no_other_protocol(tmp_path: Path) -> None:
    path = tmp_path / "a.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(SourceError):
        list(open_source(path))


def test_a_damaged_middle_costs_frames_and_not_the_rest(tmp_path: Path) -> None:
    for name, codec in (("a.ts", "libx264"), ("a.mkv", "mpeg4"), ("a.avi", "mjpeg")):
        path = write_flat(
            tmp_path / name, [4 * n for n in range(40)], codec="libx264" if codec == "mjpeg" else codec
        )
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 60] = bytes(60)
        path.write_bytes(data)
        with open_source(path) as source:
            times = [frame.time for frame in source]
        assert len(times) > 15 and times == sorted(times), name


def test_long_and_broken_names_are_source_errors() -> None:
    for name in ("x" * 5000, "a\0b.mp4", "half \ud83d.mp4", "/" + "d/" * 3000):
        with pytest.raises(SourceError):
            open_source(name)
        with pytest.raises((SourceError, InputError)):
            asked(name)


def test_a_data_uri_may_hold_a_video(tmp_path: Path) -> None:
    import base64

    data = write_video(tmp_path / "a.mp4", list(range(10))).read_bytes()
    video, _ = asked("data:video/mp4;base64," + base64.b64encode(data).decode(), nframes=4)
    assert [number_of(frame) for frame in video] == [0, 3, 6, 9]


def test_a_raw_stream_without_stamps_has_the_times_of_its_rate(tmp_path: Path) -> None:
    path = write_flat(tmp_path / "a.h264", [4 * n for n in range(20)])
    with open_source(path) as source:
        times = [frame.time for frame in source]
    assert len(times) == 20 and np.diff(times) == pytest.approx([times[1]] * 19)
    assert len(asked(path, nframes=4)[0]) == 4


def test_a_clock_that_wraps_runs_on(tmp_path: Path) -> None:
    """MPEG-TS counts 33 bits of 1/90000 s; a stream may begin just before they are full."""
    path = write_video(tmp_path / "a.ts", list(range(40)), codec="libx264", start=954436)
    with open_source(path) as source:
        times = [frame.time for frame in source]
    assert times == pytest.approx([n / 10 for n in range(40)], abs=0.01)


def test_a_flash_video_whose_last_frame_rests_is_whole_and_a_cut_one_is_not(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "a.flv", list(range(20)), codec="flv").read_bytes())
    place = data.index(b"duration") + len(b"duration") + 1
    data[place : place + 8] = struct.pack(">d", 10.0)  # seconds; the last frame stays for eight of them
    (tmp_path / "a.flv").write_bytes(data)
    with open_source(tmp_path / "a.flv") as source:
        assert len(list(source)) == 20 and source.problem is None
    (tmp_path / "b.flv").write_bytes(data[: len(data) * 9 // 10])
    with pytest.raises(SourceError, match="is damaged"), open_source(tmp_path / "b.flv") as source:
        list(source)
