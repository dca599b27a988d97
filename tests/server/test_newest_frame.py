"""The newest frame of a stream, to look at what the server sees."""

import io

import numpy as np
from PIL import Image

from infinitevl.server.events import to_jpeg
from tests.server.serving import Running, error_of, opened, picture, push


def shown(server: Running, stream: str) -> np.ndarray:
    response = server.client.get(f"/v1/streams/{stream}/frame")
    assert response.status_code == 200 and response.headers["content-type"] == "image/jpeg"
    assert response.headers["cache-control"] == "no-store"
    return np.asarray(Image.open(io.BytesIO(response.content)))


def sent(seed: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(to_jpeg(picture(seed)))))


def test_it_is_the_newest_frame_that_was_read_and_a_forks_is_its_own(server: Running) -> None:
    stream = opened(server.client)
    error = error_of(server.client.get(f"/v1/streams/{stream}/frame"), 404)
    assert error["code"] == "frame_not_found"
    for seed in (1, 2):
        push(server.client, stream, seed)
        assert np.array_equal(shown(server, stream), sent(seed))
    fork = server.client.post(f"/v1/streams/{stream}/fork").json()["id"]
    push(server.client, stream, 3)
    assert np.array_equal(shown(server, fork), sent(2))
    assert np.array_equal(shown(server, stream), sent(3))


def test_a_state_of_another_past_has_no_picture(server: Running) -> None:
    stream = opened(server.client)
    push(server.client, stream, 1)
    state = server.client.get(f"/v1/streams/{stream}/state").content
    assert server.client.put(f"/v1/streams/{stream}/state", content=state).status_code == 200
    error_of(server.client.get(f"/v1/streams/{stream}/frame"), 404)


def test_a_large_picture_is_kept_small_and_shown_whole(server: Running) -> None:
    stream, half = opened(server.client), np.zeros((1500, 3001, 3), np.uint8)
    half[:, 1500:] = 255
    file = io.BytesIO()
    Image.fromarray(half).save(file, "PNG")
    push_ = server.client.post(f"/v1/streams/{stream}/frames?wait=true", content=file.getvalue())
    assert push_.status_code == 200, push_.text
    kept = server.context.worker.streams[stream].newest_image
    assert kept.nbytes < 6.3e6 and kept.base is None
    image = shown(server, stream)
    assert image.shape == (256, 512, 3)
    assert image[:, :250].max() < 10 and image[:, 262:].min() > 245
