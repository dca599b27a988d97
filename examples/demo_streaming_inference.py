"""Watch a video frame by frame as if it were live, ask on the way, and print the speed at the end.

python examples/demo_streaming_inference.py --model_path MODEL --video_path VIDEO --fps 2 [--max_new_tokens N]

On CUDA every step is captured once as a CUDA graph and then replayed; elsewhere the steps are plain calls.
"""

import argparse
import statistics
import sys
import time

from infinitevl import InfiniteVLError, StreamSession, load, open_source

CAPTURED = 4  # first frames, in which steps are captured: not measured
LATENCY_EVERY = 20  # these frames are waited for, all others follow each other without a wait


class Watching:
    """Times the frames of a session: some are waited for one by one, the others follow each other."""

    def __init__(self, session: StreamSession):
        self.session = session
        self.num_frames = self.num_following = 0
        self.latencies: list[float] = []  # milliseconds
        self.seconds, self.since = 0.0, 0.0  # of frames that follow each other; when they went on, 0: not yet

    def observe(self, image: object, at: float) -> None:
        index, self.num_frames = self.num_frames, self.num_frames + 1
        is_single = index >= CAPTURED and index % LATENCY_EVERY == 0
        if is_single or index <= CAPTURED:
            self.settle()
        start = time.perf_counter()
        self.session.observe(image, at=at)
        if is_single:
            self.session.engine.settle()
            self.latencies.append(1000 * (time.perf_counter() - start))
        elif index >= CAPTURED:
            self.since = self.since or start
            self.num_following += 1

    def settle(self) -> None:
        """Wait for the device, and stop the clock until the next frame."""
        self.session.engine.settle()
        self.seconds += time.perf_counter() - self.since if self.since else 0.0
        self.since = 0.0

    def summary(self) -> str:
        self.settle()
        device = self.session.model.device
        seen = f"{self.num_frames} frames on {device}; the first {CAPTURED} are not measured"
        if not (self.num_following and self.latencies):
            return f"{seen}, and the others are too few"
        period = self.seconds / self.num_following
        return (
            f"{seen}: on CUDA steps are captured in them\n"
            f"{statistics.mean(self.latencies):.2f} ms a frame: mean of {len(self.latencies)} waited for\n"
            f"{1 / period:.1f} FPS, {1000 * period:.2f} ms each: the others, reading the video included"
        )


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_path", default="builtin", help="folder or name; default: the built-in model")
    parser.add_argument("--video_path", required=True, help="video file, folder of pictures, camera, address")
    parser.add_argument("--fps", type=float, help="at most so many frames a second; default: all there are")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--question", default="What is happening now?")
    parser.add_argument("--questions_at", type=int, nargs="*", default=[150, 300, 450], metavar="FRAME")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    chosen = options(arguments)
    with open_source(chosen.video_path, fps=chosen.fps) as frames:
        watching = Watching(StreamSession(*load(chosen.model_path)))
        try:
            for frame in frames:
                watching.observe(frame.image, frame.time)
                is_asked = watching.num_frames in chosen.questions_at
                if is_asked or watching.num_frames % 50 == 0:
                    show(f"frame {watching.num_frames}, {frame.time:.1f} s\n")
                if is_asked:
                    watching.settle()
                    show(f"  {chosen.question}\n  ")
                    watching.session.ask(chosen.question, max_new_tokens=chosen.max_new_tokens, on_text=show)
                    show("\n")
        except KeyboardInterrupt:
            show("stopped\n")
    show(watching.summary() + "\n")


def show(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    try:
        main()
    except InfiniteVLError as error:
        sys.exit(f"error: {error}")
