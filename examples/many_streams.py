"""Ask several videos at once: python examples/many_streams.py "What is happening?" VIDEO VIDEO [VIDEO ...]"""

import sys
from itertools import zip_longest

from infinitevl import Engine, InfiniteVLError, Sampling, StreamSession, load, open_source


def main(question: str, *videos: str, model_name: str | None = None) -> None:
    """Read the frames of all videos in common steps, and decode all answers in common steps."""
    model, processor = load(model_name)
    # Each stream takes a slot, and each question another one while it is answered.
    engine = Engine(model, processor, num_slots=2 * len(videos))
    streams = [StreamSession.on(engine) for _ in videos]
    sources = [open_source(video, fps=2) for video in videos]
    for frames in zip_longest(*sources):  # a shorter video ends earlier
        engine.observe([(stream, frame) for stream, frame in zip(streams, frames, strict=True) if frame])

    answers = [stream.begin(question, Sampling(max_new_tokens=48)) for stream in streams]
    for video, stream, answer in zip(videos, streams, answers, strict=True):
        print(f"{video}: {stream.finish(answer)}")

    streams[0].park()  # to host memory: its slot is free for somebody else
    print(f"{engine.pool.num_free} of {2 * len(videos)} slots are free")
    print(streams[0].stats().frames, "frames were seen by the first stream, which is back in a slot")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InfiniteVLError as error:
        sys.exit(f"error: {error}")
