"""The tensor way to scale a frame gives PIL's pixels, every one."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from infinitevl.errors import InputError
from infinitevl.processing.pictures import resizer as resize
from infinitevl.processing.pictures.resizer import Resizer
from infinitevl.processing.pictures.scaling import resize_frame

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
Size = tuple[int, int]
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 300))
SIZES = st.tuples(SIDES, SIDES)
CAMERAS = [(720, 1280), (1280, 720), (1080, 1920), (480, 640), (360, 640), (449, 447), (112, 112)]


def noise(size: Size, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def stripes(size: Size, seed: int = 0) -> np.ndarray:
    """Black and white alone: the filter overshoots on both sides, and both ends are clipped."""
    return (noise(size, seed) > 127).astype(np.uint8) * np.uint8(255)


def scene(size: Size, seed: int = 0) -> np.ndarray:
    """Smooth as a photograph, with hard edges."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
    waves = [np.sin((3 + c + seed) * x + 5 * y * y + c) + (x * y * 40 % 1 > 0.5) for c in range(3)]
    return np.clip(np.stack(waves, axis=-1) * 80 + 90, 0, 255).astype(np.uint8)


def by_pil(picture: np.ndarray, size: Size) -> Tensor:
    scaled = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1)


def check(picture: np.ndarray, size: Size, device: str) -> None:
    source = (picture.shape[0], picture.shape[1])
    frame = torch.from_numpy(picture).to(device)
    wanted = by_pil(picture, size)
    for last, pixels in ((True, frame), (False, frame.permute(2, 0, 1).contiguous())):
        scaled = Resizer(source, size, device, channels_last=last)(pixels)
        assert scaled.dtype == torch.uint8 and scaled.is_contiguous() and scaled.device == frame.device
        assert torch.equal(scaled.cpu(), wanted), (source, size, last)


@pytest.mark.parametrize("device", DEVICES)
@given(source=SIZES, target=SIZES, seed=st.integers(0, 99), content=st.sampled_from([noise, stripes, scene]))
@example(source=(1, 1), target=(70, 33), seed=0, content=noise)
@example(source=(300, 299), target=(1, 1), seed=0, content=stripes)
@example(source=(1, 3000), target=(28, 28), seed=0, content=stripes)
@example(source=(3000, 1), target=(28, 700), seed=0, content=stripes)
@example(source=(200, 100), target=(100, 50), seed=0, content=noise)
@example(source=(200, 100), target=(100, 51), seed=0, content=noise)
@example(source=(100, 200), target=(99, 300), seed=0, content=noise)
@example(source=(64, 64), target=(64, 31), seed=0, content=noise)
@example(source=(64, 64), target=(33, 64), seed=0, content=noise)
def test_a_scaled_frame_is_pils(device: str, source: Size, target: Size, seed: int, content) -> None:
    check(content(source, seed), target, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", CAMERAS)
@pytest.mark.parametrize("content", [noise, stripes, scene])
def test_frames_of_cameras_are_scaled_as_pil_does(device: str, source: Size, content) -> None:
    check(content(source), (448, 448), device)


@pytest.mark.parametrize("device", DEVICES)
def test_the_exact_path_on_the_host_gives_the_same_pixels(device: str) -> None:
    picture = scene((240, 320))
    scaled = Resizer((240, 320), (84, 112), device, channels_last=True)(torch.from_numpy(picture).to(device))
    assert torch.equal(scaled.cpu(), resize_frame(picture, (84, 112)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scratch", [1, 1 << 14, 1 << 22])
@pytest.mark.parametrize("last", [True, False])
def test_a_batch_equals_its_frames_however_it_is_cut(
    device: str, scratch: int, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "_SCRATCH", scratch)
    pictures = [scene((90, 70), seed) for seed in range(6)]
    frames = torch.from_numpy(np.stack(pictures)).to(device).view(2, 3, 90, 70, 3)
    frames = frames if last else frames.movedim(-1, -3)
    scaled = Resizer((90, 70), (56, 84), device, channels_last=last)(frames)
    assert scaled.shape == (2, 3, 3, 56, 84)
    for one, picture in zip(scaled.flatten(0, 1).cpu(), pictures, strict=True):
        assert torch.equal(one, by_pil(picture, (56, 84)))


@pytest.mark.parametrize("size", [(28, 56), (56, 28)])
def test_a_batch_may_be_empty(size: Size) -> None:
    frames = torch.empty(0, *size, 3, dtype=torch.uint8)
    assert Resizer(size, (28, 28), channels_last=True)(frames).shape == (0, 3, 28, 28)


@pytest.mark.parametrize("last", [True, False])
def test_a_frame_cut_out_of_a_larger_one_is_scaled(last: bool) -> None:
    picture = noise((100, 120))
    frames = torch.from_numpy(picture)[10:80:2, 5:100]
    scaled = Resizer((35, 95), (28, 56), channels_last=last)(frames if last else frames.permute(2, 0, 1))
    assert torch.equal(scaled, by_pil(np.ascontiguousarray(picture[10:80:2, 5:100]), (28, 56)))


def test_a_frame_of_the_right_size_is_only_laid_out() -> None:
    frame = torch.from_numpy(noise((28, 56)))
    laid_out = Resizer((28, 56), (28, 56), channels_last=True)(frame)
    assert laid_out.is_contiguous() and torch.equal(laid_out, frame.permute(2, 0, 1))
    assert Resizer((28, 56), (28, 56), channels_last=False)(laid_out).data_ptr() == laid_out.data_ptr()


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(3, 20, 30, dtype=torch.uint8),
        torch.zeros(30, 20, 3, dtype=torch.uint8),
        torch.zeros(20, 30, 3),
        torch.zeros(20, 30, 4, dtype=torch.uint8),
        torch.zeros(20, 30, dtype=torch.uint8),
    ],
)
def test_frames_it_was_not_made_for_are_refused(frames: Tensor) -> None:
    with pytest.raises(InputError, match=r"valid are torch.uint8 \[\.\.\., 20, 30, 3\]"):
        Resizer((20, 30), (28, 28), channels_last=True)(frames)


@pytest.mark.parametrize("sizes", [((0, 5), (28, 28)), ((5, 5), (28, -1))])
def test_sizes_without_pixels_are_refused(sizes: tuple[Size, Size]) -> None:
    with pytest.raises(InputError, match="sides above 0"):
        Resizer(*sizes, channels_last=True)


@pytest.mark.gpu
@pytest.mark.parametrize("source", [(720, 1280), (448, 448)])
def test_a_captured_call_scales_what_is_in_the_frame_at_replay(source: Size) -> None:
    frames = torch.zeros(2, *source, 3, dtype=torch.uint8, device="cuda")
    resizer = Resizer(source, (448, 448), "cuda", channels_last=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        resizer(frames)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scaled = resizer(frames)
    for seed in range(2):
        pictures = [scene(source, seed), noise(source, seed)]
        frames.copy_(torch.from_numpy(np.stack(pictures)))
        graph.replay()
        for one, picture in zip(scaled.cpu(), pictures, strict=True):
            assert torch.equal(one, by_pil(picture, (448, 448)))
