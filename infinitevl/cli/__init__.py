"""The commands; each calls one function of the package."""

from typing import Annotated

import typer

import infinitevl
from infinitevl.cli.bench import app as bench_app
from infinitevl.cli.command import (
    DeviceOption,
    Dtype,
    DtypeOption,
    FrameMode,
    JsonOption,
    MaxNewTokensOption,
    ModelOption,
    Quantization,
    QuantizationOption,
    ReportOption,
    TemperatureOption,
    check_folder,
    command,
)
from infinitevl.cli.output import prepare_streams
from infinitevl.cli.train import app as train_app
from infinitevl.evaluation.questions import parse_question

app = typer.Typer(
    name="infinitevl",
    help="Chat about pictures and videos, and watch streams without end with a state of fixed size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
app.add_typer(train_app, name="train")


def main() -> None:
    """Run the command line."""
    prepare_streams()
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"infinitevl {infinitevl.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before any command."""


@command(app)
def demo(
    frames: Annotated[int, typer.Option("--frames", min=12, help="Length of the stream; 240 is all.")] = 240,
    json: JsonOption = False,
    report: ReportOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.auto,
    quantization: QuantizationOption = Quantization.full,
) -> None:
    """Watch a stored stream many windows long, and compare the answers with the truth."""
    check_folder(report)
    from infinitevl.cli.demo import run_demo

    run_demo(
        frames,
        as_json=json,
        report=report,
        model=model,
        device=device,
        dtype=dtype.value,
        quantization=quantization.value,
    )


@command(app)
def chat(
    image: Annotated[
        list[str] | None, typer.Option("--image", help="A picture for the first message; repeatable.")
    ] = None,
    video: Annotated[
        list[str] | None, typer.Option("--video", help="A video for the first message; repeatable.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The only message; without it, a conversation begins.")
    ] = None,
    max_new_tokens: MaxNewTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    json: JsonOption = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.auto,
    quantization: QuantizationOption = Quantization.full,
) -> None:
    """Talk about pictures and videos: /image PATH, /video PATH, /reset, /quit."""
    from infinitevl.cli.chat import run_chat

    attached = [("image", path) for path in image or []] + [("video", path) for path in video or []]
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    run_chat(
        attached,
        prompt,
        sampling,
        as_json=json,
        model=model,
        device=device,
        dtype=dtype.value,
        quantization=quantization.value,
    )


SourceArgument = Annotated[
    str,
    typer.Argument(
        help="A video file, a folder of pictures, a camera (/dev/video0), or an rtsp or http address."
    ),
]
AskOption = Annotated[
    list[str] | None,
    typer.Option("--ask", help="'30s: what is on the sign?', or a bare question for the end; repeatable."),
]
FpsOption = Annotated[
    float | None, typer.Option("--fps", help="At most so many frames a second; default: every frame.")
]
LiveOption = Annotated[
    bool, typer.Option("--live", help="Play a file at its own pace; the newest frame wins.")
]
ModeOption = Annotated[
    FrameMode | None,
    typer.Option("--mode", help="Each frame a picture (default), or two frames a temporal patch."),
]
KeepTurnsOption = Annotated[
    bool, typer.Option("--keep-turns", help="Questions and answers become part of the stream.")
]
SaveStateOption = Annotated[
    str | None, typer.Option("--save-state", metavar="FILE", help="Save the stream at the end.")
]
ResumeStateOption = Annotated[
    str | None,
    typer.Option("--resume-state", metavar="FILE", help="Continue a saved stream, and its time."),
]
MaxFramesOption = Annotated[
    int | None, typer.Option("--max-frames", min=1, help="Stop after so many frames.")
]


@command(app)
def watch(
    source: SourceArgument,
    ask: AskOption = None,
    fps: FpsOption = None,
    live: LiveOption = False,
    mode: ModeOption = None,
    keep_turns: KeepTurnsOption = False,
    save_state: SaveStateOption = None,
    resume_state: ResumeStateOption = None,
    max_frames: MaxFramesOption = None,
    max_new_tokens: MaxNewTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    report: ReportOption = None,
    json: JsonOption = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.auto,
    quantization: QuantizationOption = Quantization.full,
) -> None:
    """Watch a source; answer questions at given times, typed ones at once, and others at the end."""
    for line in ask or []:
        parse_question(line)
    for path in (save_state, report):
        check_folder(path)
    from infinitevl.cli.watch import WatchOptions, run_watch
    from infinitevl.engine.sampling import Sampling

    run_watch(
        WatchOptions(
            source=source,
            ask=ask or [],
            fps=fps,
            live=live or None,
            mode=mode.value if mode else None,
            keep_turns=keep_turns,
            save_state=save_state,
            resume_state=resume_state,
            max_frames=max_frames,
            sampling=Sampling(max_new_tokens, temperature),
            report=report,
            as_json=json,
        ),
        model=model,
        device=device,
        dtype=dtype.value,
        quantization=quantization.value,
    )


@command(app)
def models(json: JsonOption = False) -> None:
    """List the models that `--model` knows by name, and what each is good for."""
    from infinitevl.cli.models import show_models

    show_models(as_json=json)


@command(app)
def doctor(
    json: JsonOption = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.auto,
) -> None:
    """Say what this machine has, which kernels will run and why, and how many streams fit."""
    from infinitevl.cli.doctor import show_findings

    show_findings(model, device, dtype.value, as_json=json)
