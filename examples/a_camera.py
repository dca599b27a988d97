"""Ask a camera every ten seconds: python examples/a_camera.py camera:0 "Who is here?" [MODEL]"""

import sys

from infinitevl import InfiniteVLError, StreamSession, load, open_source


def main(camera: str, question: str, model_name: str | None = None) -> None:
    """Ask every ten seconds; frames that come faster than the model reads them are dropped and counted."""
    model, processor = load(model_name)
    session = StreamSession(model, processor)
    next_question = 0.0
    with open_source(camera, live=True) as frames:
        for frame in frames:
            session.observe(frame)
            if frame.time >= next_question:
                answer = session.ask(question, max_new_tokens=48)
                print(f"{frame.time:7.1f} s, {session.dropped} frames dropped: {answer}", flush=True)
                next_question = frame.time + 10.0


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InfiniteVLError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("bye")
