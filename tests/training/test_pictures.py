import numpy as np
import torch
from PIL import Image

from infinitevl.training.pictures import unpatch, write_pictures
from tests.support import tiny_config, tiny_processor


def test_patches_become_the_picture_again(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    processor, config = tiny_processor(), tiny_config().vision_config
    batch = processor(images=[Image.fromarray(noise)], text="<|image_pad|>", return_tensors="pt")
    (path,) = write_pictures(batch, tmp_path / "pictures", config, processor)
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), noise)


def test_each_temporal_patch_of_a_video_shows_its_first_frame():
    config = tiny_config().vision_config
    video = torch.randint(0, 256, (4, 3, 56, 56), generator=torch.Generator().manual_seed(0)).float()
    inputs = tiny_processor()(videos=[video], text="<|video_pad|>", fps=2, return_tensors="pt")
    frames = unpatch(inputs["pixel_values_videos"], inputs["video_grid_thw"][0].tolist(), config)
    given = tiny_processor().image_processor
    mean, std = (torch.tensor(x)[:, None, None] for x in (given.image_mean, given.image_std))
    assert torch.allclose(frames, (video[::2] / 255 - mean) / std, atol=1e-3)
