"""The commands; each calls one function of the package."""

from typing import Annotated

import typer

import infinitevl
from infinitevl.cli.bench import app as bench_app
from infinitevl.cli.command import (
    AllowPrivateOption,
    Attention,
    AttentionOption,
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
from infinitevl.errors import InputError
from infinitevl.evaluation.questions import parse_condition, parse_period, parse_question

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
    attention: AttentionOption = Attention.auto,
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
        attention=attention.variant,
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
    allow_private: AllowPrivateOption = False,
    json: JsonOption = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.auto,
    quantization: QuantizationOption = Quantization.full,
    attention: AttentionOption = Attention.auto,
) -> None:
    """Talk about pictures and videos: /image PATH, /video PATH, /reset, /quit."""
    from infinitevl.cli.chat import run_chat

    attached = [("image", path) for path in image or []] + [("video", path) for path in video or []]
    settings = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "allow_private": allow_private,
    }
    run_chat(
        attached,
        prompt,
        settings,
        as_json=json,
        model=model,
        device=device,
        dtype=dtype.value,
        quantization=quantization.value,
        attention=attention.variant,
    )


SourceArgument = Annotated[
    str,
    typer.Argument(help="A video file, a folder of pictures, camera:0, screen, or an rtsp or http address."),
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
WhenOption = Annotated[
    list[str] | None,
    typer.Option(
        "--when",
        metavar="CONDITION",
        help="Tell when the answer turns to yes: 'Is it red?', or 'What is on the sign? = STOP'; repeatable.",
    ),
]
EveryOption = Annotated[
    str | None,
    typer.Option(
        "--every",
        metavar="TIME",
        help="Ask --when so often: 10s (default), 1m30s, 2.5. Without --when: as --fetch-every.",
    ),
]
FetchEveryOption = Annotated[
    float | None,
    typer.Option(
        "--fetch-every",
        metavar="SECONDS",
        help="Fetch the picture at an http address so often; default: every 1 second.",
    ),
]
ConfirmOption = Annotated[
    int, typer.Option("--confirm", min=1, help="Answers in a row that must be yes for an event.")
]
ReleaseOption = Annotated[
    int, typer.Option("--release", min=1, help="Answers in a row that must not be yes before another event.")
]
CooldownOption = Annotated[
    float, typer.Option("--cooldown", min=0.0, help="Seconds after an event without another one.")
]
EventsOption = Annotated[
    str | None, typer.Option("--events", metavar="FILE", help="Append each event as a line of JSON.")
]
MaxFramesOption = Annotated[
    int | None, typer.Option("--max-frames", min=1, help="Stop after so many frames.")
]


@command(app)
def watch(
    source: SourceArgument,
    ask: AskOption = None,
    fps: FpsOption = None,
    when: WhenOption = None,
    every: EveryOption = None,
    confirm: ConfirmOption = 1,
    release: ReleaseOption = 1,
    cooldown: CooldownOption = 0.0,
    events: EventsOption = None,
    fetch_every: FetchEveryOption = None,
    live: LiveOption = False,
    mode: ModeOption = None,
    keep_turns: KeepTurnsOption = False,
    save_state: SaveStateOption = None,
    resume_state: ResumeStateOption = None,
    max_frames: MaxFramesOption = None,
    max_new_tokens: MaxNewTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    allow_private: AllowPrivateOption = False,
    report: ReportOption = None,
    json: JsonOption = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.auto,
    quantization: QuantizationOption = Quantization.full,
    attention: AttentionOption = Attention.auto,
) -> None:
    """Watch a source; answer questions at given times, typed ones at once, others at the end; tell events."""
    for line in ask or []:
        parse_question(line)
    for line in when or []:
        parse_condition(line)
    period = None if every is None else parse_period(every)
    if not when and None not in (period, fetch_every):
        raise InputError("--every without --when is --fetch-every: give one of the two")
    for path in (save_state, report, events):
        check_folder(path)
    from infinitevl.cli.watch import WatchOptions, run_watch
    from infinitevl.engine.sampling import Sampling

    run_watch(
        WatchOptions(
            source=source,
            ask=ask or [],
            fps=fps,
            when=when or [],
            when_every=period or 10.0,
            confirm=confirm,
            release=release,
            cooldown=cooldown,
            events=events,
            fetch_every=fetch_every if when or period is None else period,
            live=live or None,
            mode=mode.value if mode else None,
            keep_turns=keep_turns,
            save_state=save_state,
            resume_state=resume_state,
            max_frames=max_frames,
            sampling=Sampling(max_new_tokens, temperature),
            allow_private=allow_private,
            report=report,
            as_json=json,
        ),
        model=model,
        device=device,
        dtype=dtype.value,
        quantization=quantization.value,
        attention=attention.variant,
    )


@command(app)
def serve(
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; other than loopback needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Where to listen; must be free.")
    ] = 8000,
    slots: Annotated[
        int, typer.Option("--slots", min=3, help="Streams and answers on the device at the same time.")
    ] = 8,
    mode: Annotated[
        FrameMode, typer.Option("--mode", help="Each frame a picture, or two frames a temporal patch.")
    ] = FrameMode.image,
    api_key_file: Annotated[
        str | None,
        typer.Option(
            "--api-key-file", metavar="FILE", help="API keys, one a line; or set INFINITEVL_API_KEYS."
        ),
    ] = None,
    allow_folder: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-folder",
            metavar="FOLDER",
            help="Callers may name files in it, as file://...; repeatable.",
        ),
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Callers may name private addresses, cameras, streams.")
    ] = False,
    allow_unsigned_states: Annotated[
        bool, typer.Option("--allow-unsigned-states", help="Take states that this server did not sign.")
    ] = False,
    state_dir: Annotated[
        str | None,
        typer.Option("--state-dir", metavar="FOLDER", help="Keep streams there, and find them again."),
    ] = None,
    save_every: Annotated[
        float, typer.Option("--save-every", metavar="SECONDS", min=0, help="Between two saves of a stream.")
    ] = 5.0,
    park_memory: Annotated[
        float | None,
        typer.Option("--park-memory", metavar="GIB", min=0, help="Host memory for streams without a slot."),
    ] = None,
    park_disk: Annotated[
        float | None,
        typer.Option("--park-disk", metavar="GIB", min=0, help="Disk for streams beyond --park-memory."),
    ] = None,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="Servers behind the address; more than one needs Ray.")
    ] = 1,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.auto,
    quantization: QuantizationOption = Quantization.full,
    attention: AttentionOption = Attention.auto,
) -> None:
    """Serve a model to programs and browsers: OpenAI's API, streams to watch and ask, and a page."""
    from infinitevl.cli.serve import ServeOptions, run_serve

    run_serve(
        ServeOptions(
            host=host,
            port=port,
            slots=slots,
            mode=mode.value,
            api_key_file=api_key_file,
            allow_folder=allow_folder or [],
            allow_private=allow_private,
            allow_unsigned_states=allow_unsigned_states,
            state_dir=state_dir,
            save_every=save_every,
            park_memory=park_memory,
            park_disk=park_disk,
            replicas=replicas,
        ),
        model=model,
        device=device,
        dtype=dtype.value,
        quantization=quantization.value,
        attention=attention.variant,
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
    attention: AttentionOption = Attention.auto,
) -> None:
    """Say what this machine has, which kernels will run and why, and how many streams fit."""
    from infinitevl.cli.doctor import show_findings

    show_findings(model, device, dtype.value, attention.variant, as_json=json)
