"""Fork and save a stream: python examples/save_and_fork.py examples/signs.mp4 "What was first?" [MODEL]"""

import sys
import tempfile
from pathlib import Path

from infinitevl import InfiniteVLError, StreamSession, load, open_source


def main(video: str, question: str, model_name: str | None = None) -> None:
    """Show that a fork and a saved stream continue exactly as the original would."""
    model, processor = load(model_name)
    session = StreamSession(model, processor)
    with open_source(video, fps=2) as frames:
        for frame in frames:
            session.observe(frame)

    other = session.fork()
    other.observe(frame.image, at=frame.time + 60)
    print("the fork has seen", other.stats().frames, "frames, the stream", session.stats().frames)

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "stream.safetensors"
        session.save(path)
        print(f"saved {path.stat().st_size:,} bytes")
        resumed = StreamSession.load(path, model, processor)
    print("the same answer:", resumed.ask(question) == session.ask(question))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InfiniteVLError as error:
        sys.exit(f"error: {error}")
