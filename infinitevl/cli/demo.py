"""`infinitevl demo`: the stream, the marks beside the answers, and one line of measured speed."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from infinitevl.cli.command import check_folder, load_model
from infinitevl.cli.output import print_json, write
from infinitevl.cli.sizes import growth_per_token
from infinitevl.cli.terminal import TextDisplay
from infinitevl.config import InfiniteVLTextConfig
from infinitevl.engine.session import StreamSession
from infinitevl.evaluation.demo import Demo, DemoResult, Mark, open_demo, watch_demo
from infinitevl.evaluation.report import Recorder, write_report
from infinitevl.evaluation.streaming import Answered, Event
from infinitevl.evaluation.units import show_bytes


def run_demo(
    num_frames: int,
    *,
    as_json: bool,
    report: str | None,
    model: str | None,
    device: str | None,
    dtype: str,
    quantization: str,
    attention: str | None,
) -> None:
    """Watch the stream, mark the answers, and write the report if --report is given."""
    check_folder(report)
    demo = open_demo(num_frames)
    network, processor = load_model(model, device, dtype, quantization, attention)
    config = network.config.text_config
    recorder = Recorder()
    show = _JsonMarks() if as_json else _TextMarks(demo, config)
    result = show.run(StreamSession(network, processor), demo, recorder)
    if report is not None:
        growth = growth_per_token(config, network.dtype)
        names = {"title": "A stream that no model was trained on", "model": model or "the built-in model"}
        write_report(report, recorder, result.summary, **names, growth_per_token=growth)


class _JsonMarks:
    """Print every mark as a JSON object, and last the summary with right answers and speed."""

    def run(self, session: Any, demo: Demo, recorder: Recorder) -> DemoResult:
        def mark(event: Answered, mark: Mark) -> None:
            recorder(event, truth=mark.truth, right=mark.right)
            print_json(asdict(mark))

        result = watch_demo(session, demo, recorder, mark)
        counts = {"right": result.num_right, "asked": len(result.marks)}
        print_json(result.summary.line() | counts | {"frames_per_second": round(result.frames_per_second, 2)})
        return result


class _TextMarks:
    """Show progress, answers beside the truth, and the speed."""

    def __init__(self, demo: Demo, config: InfiniteVLTextConfig) -> None:
        self._window_size, self._num_frames = config.sliding_window, demo.source.num_frames
        self._num_sinks = config.num_sink_tokens
        self._display = TextDisplay(demo.source.num_frames)
        self._console = Console()

    def run(self, session: Any, demo: Demo, recorder: Recorder) -> DemoResult:
        def show(event: Event) -> None:
            recorder(event)
            self._display(event)

        def mark(event: Answered, mark: Mark) -> None:
            recorder(event, truth=mark.truth, right=mark.right)
            self._verdict(mark)
            self._display(event)

        write(f"{self._num_frames} frames that no model was trained on. ")
        first = f"the first {self._num_sinks:,} and " if self._num_sinks else ""
        write(f"Attention sees {first}the last {self._window_size:,} tokens; the rest is memory.\n\n")
        try:
            result = watch_demo(session, demo, show, mark)
        finally:
            self._display.pause()
        self._conclude(result, recorder)
        return result

    def _verdict(self, mark: Mark) -> None:
        text = "  ✓" if mark.right else f"  ✗ true answer: {mark.truth}"
        self._console.print(Text(text, style="green" if mark.right else "red"), end="", soft_wrap=True)

    def _conclude(self, result: DemoResult, recorder: Recorder) -> None:
        summary = result.summary
        sizes = {point.state_bytes for point in recorder.memory.items}
        flat = (
            "the same at every frame"
            if len(sizes) == 1
            else f"between {min(sizes):,} and {max(sizes):,} bytes"
        )
        windows = summary.tokens / self._window_size
        write(f"\n{result.num_right} of {len(result.marks)} answers are right\n")
        write(f"{summary.frames:,} frames at {result.frames_per_second:.1f} frames/s, ")
        write(f"{summary.tokens:,} tokens = {windows:.0f} windows, ")
        write(f"state {show_bytes(summary.state_bytes)}, {flat}\n")
