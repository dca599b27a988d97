"""Watch a video and ask on the way: python examples/a_video.py examples/signs.mp4 "What is it?" [MODEL]"""

import sys

from infinitevl import InfiniteVLError, StreamSession, load, open_source


def main(video: str, question: str, model_name: str | None = None) -> None:
    """Ask the same question every five seconds of the video; memory does not grow."""
    model, processor = load(model_name)
    session = StreamSession(model, processor)
    next_question = 5.0
    with open_source(video, fps=2) as frames:
        for frame in frames:
            session.observe(frame)
            if frame.time >= next_question:
                print(f"{frame.time:.1f} s: {session.ask(question)}")
                next_question += 5.0
    print(f"at the end: {session.ask(question)}")
    stats = session.stats()
    print(f"{stats.frames} frames, {stats.tokens} tokens, {stats.state_bytes:,} bytes of state")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InfiniteVLError as error:
        sys.exit(f"error: {error}")
