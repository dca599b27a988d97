"""`infinitevl bench`: measurements as lines of JSON, and the figures drawn from them."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from infinitevl.cli.command import (
    DeviceOption,
    Dtype,
    FrameMode,
    Quantization,
    QuantizationOption,
    check_device,
    check_folder,
    command,
)

if TYPE_CHECKING:
    from infinitevl.bench.bench import Bench

app = typer.Typer(
    help="Measure speed and memory, beside a stock Transformer of the same shape, and draw the figures.",
    no_args_is_help=True,
)


class Size(StrEnum):
    """Models that can be measured."""

    builtin = "builtin"
    published = "4b"
    tiny = "tiny"


SizeOption = Annotated[
    Size,
    typer.Option("--size", help="4b: the published shape, random weights; builtin: the package's own model."),
]
NumberOption = Annotated[Dtype, typer.Option("--dtype", help="Number format; auto: bfloat16 on a GPU.")]
OutOption = Annotated[
    str | None, typer.Option("--out", metavar="FILE.jsonl", help="Add the measured lines to this file.")
]
RepeatsOption = Annotated[int, typer.Option("--repeats", min=1, help="Timed calls for each line.")]
PeerOption = Annotated[
    bool | None,
    typer.Option(
        "--peer/--no-peer", help="Measure the stock Transformer in the same run; default: if it can be."
    ),
]
CommitOption = Annotated[
    str | None, typer.Option("--commit", help="Commit of the source, where git does not know it.")
]
ModeOption = Annotated[
    FrameMode, typer.Option("--mode", help="Each frame a picture, or two frames a temporal patch.")
]


def _numbers(name: str, what: str, default: str) -> typer.models.OptionInfo:
    return typer.Option(name, metavar="N,N,...", help=f"{what}; default: {default}.")


@command(app)
def stream(
    frames: Annotated[str | None, _numbers("--frames", "How many frames came before", "50 to 1600")] = None,
    mode: ModeOption = FrameMode.image,
    size: SizeOption = Size.builtin,
    device: DeviceOption = None,
    dtype: NumberOption = Dtype.auto,
    repeats: RepeatsOption = 20,
    peer: PeerOption = None,
    out: OutOption = None,
    commit: CommitOption = None,
) -> None:
    """Time of a frame from host memory, its latency, memory, and a question's first token."""
    bench = _bench("stream", size, device, dtype, repeats, peer, out, commit)
    from infinitevl.bench import stream as benchmark

    benchmark.run(bench, _list("--frames", frames, benchmark.FRAMES), mode.value)


@command(app)
def decode(
    contexts: Annotated[
        str | None, _numbers("--contexts", "Tokens before the decoded one", "1024 to 1048576")
    ] = None,
    answers: Annotated[
        str | None, _numbers("--answers", "How many answers grow together, beside one alone", "8,64")
    ] = None,
    size: SizeOption = Size.builtin,
    device: DeviceOption = None,
    dtype: NumberOption = Dtype.auto,
    repeats: RepeatsOption = 20,
    peer: PeerOption = None,
    out: OutOption = None,
    commit: CommitOption = None,
    quantization: QuantizationOption = Quantization.full,
) -> None:
    """Time of a decoded token by context; the Transformer eager and captured in a CUDA graph.

    In lower precision our lines say how far logits are from those of full precision, and how often the
    likeliest token is the same.
    """
    bench = _bench("decode", size, device, dtype, repeats, peer, out, commit, quantization)
    from infinitevl.bench import decode as benchmark

    benchmark.run(
        bench,
        _list("--contexts", contexts, benchmark.CONTEXTS),
        _list("--answers", answers, benchmark.ANSWERS),
    )


@command(app)
def prefill(
    lengths: Annotated[str | None, _numbers("--lengths", "Tokens of the prompt", "4096,32768,262144")] = None,
    size: SizeOption = Size.builtin,
    device: DeviceOption = None,
    dtype: NumberOption = Dtype.auto,
    repeats: RepeatsOption = 5,
    peer: PeerOption = None,
    out: OutOption = None,
    commit: CommitOption = None,
) -> None:
    """Time to read a long text prompt."""
    bench = _bench("prefill", size, device, dtype, repeats, peer, out, commit)
    from infinitevl.bench import prefill as benchmark

    benchmark.run(bench, _list("--lengths", lengths, benchmark.LENGTHS))


@command(app)
def streams(
    counts: Annotated[str | None, _numbers("--counts", "Streams on the device", "1,2,4,8,16")] = None,
    mode: ModeOption = FrameMode.image,
    size: SizeOption = Size.builtin,
    device: DeviceOption = None,
    dtype: NumberOption = Dtype.auto,
    repeats: RepeatsOption = 20,
    out: OutOption = None,
    commit: CommitOption = None,
) -> None:
    """Time of a step in which each of many streams sees a frame."""
    bench = _bench("streams", size, device, dtype, repeats, False, out, commit)
    from infinitevl.bench import streams as benchmark

    benchmark.run(bench, _list("--counts", counts, benchmark.COUNTS), mode.value)


@command(app)
def fork(
    size: SizeOption = Size.builtin,
    device: DeviceOption = None,
    dtype: NumberOption = Dtype.auto,
    repeats: RepeatsOption = 50,
    out: OutOption = None,
    commit: CommitOption = None,
) -> None:
    """Time to copy a stream."""
    bench = _bench("fork", size, device, dtype, repeats, False, out, commit)
    from infinitevl.bench import fork as benchmark

    benchmark.run(bench)


@command(app)
def memory(
    tokens: Annotated[
        str | None, _numbers("--tokens", "Length of the stream when it is looked at", "20000,1000000")
    ] = None,
    mode: ModeOption = FrameMode.image,
    size: SizeOption = Size.builtin,
    device: DeviceOption = None,
    dtype: NumberOption = Dtype.auto,
    out: OutOption = None,
    commit: CommitOption = None,
) -> None:
    """Memory of one stream after many tokens and after very many."""
    bench = _bench("memory", size, device, dtype, 1, False, out, commit)
    from infinitevl.bench import memory as benchmark

    benchmark.run(bench, _list("--tokens", tokens, benchmark.TOKENS), mode.value)


class Sharding(StrEnum):
    """How weights are spread over several processes."""

    fsdp = "fsdp"
    grad_op = "fsdp-grad-op"


class Stage(StrEnum):
    """Stages whose steps can be measured."""

    distill_layers = "distill-layers"
    distill_logits = "distill-logits"
    sft = "sft"
    long_sft = "long-sft"


@command(app)
def train(
    stage: Annotated[Stage, typer.Option("--stage", help="Which stage's step.")] = Stage.sft,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=64, help="Of a packed row; default: 8192, long-sft 32768.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of a step, over all processes.")] = 2,
    steps: Annotated[int | None, typer.Option("--steps", min=2, help="Steps; default: by stage.")] = None,
    checkpointed: Annotated[
        int | None,
        typer.Option(
            "--checkpointed",
            min=0,
            help="Layers that compute activations again; default: as few as fit, with several processes all.",
        ),
    ] = None,
    sharding: Annotated[
        Sharding, typer.Option("--sharding", help="Of weights, with several processes.")
    ] = Sharding.fsdp,
    size: SizeOption = Size.builtin,
    device: DeviceOption = None,
    dtype: NumberOption = Dtype.auto,
    out: OutOption = None,
    commit: CommitOption = None,
) -> None:
    """Time, memory and losses of a training step; with torchrun on several GPUs, and how that scales."""
    bench = _bench("train", size, device, dtype, 1, False, out, commit)
    from infinitevl.bench import train as benchmark
    from infinitevl.errors import InputError

    if int(os.environ.get("WORLD_SIZE", "1")) > rows:
        raise InputError(f"--rows is {rows}: every process needs a row; give at least as many as there are.")
    name = stage.value
    plan = benchmark.Plan(
        name,
        tokens or benchmark.TOKENS[name],
        rows,
        steps or benchmark.STEPS[name],
        checkpointed,
        sharding.value,
    )
    benchmark.run(bench, plan)


@command(app)
def draw(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl", help="Lines that --out wrote.")],
    folder: Annotated[str, typer.Option("--folder", help="Where decode.png and stream.png go.")] = ".",
) -> None:
    """Draw the figures: ms per token by context; frames a second and memory by frames seen."""
    from infinitevl.bench.figures import draw as draw_figures

    for path in draw_figures(file, folder):
        print(path)


def _bench(
    name: str,
    size: Size,
    device: str | None,
    dtype: Dtype,
    repeats: int,
    peer: bool | None,
    out: str | None,
    commit: str | None,
    quantization: Quantization = Quantization.full,
) -> "Bench":
    """What the options say, checked before anything is built."""
    import torch

    from infinitevl.bench.bench import Bench, Options
    from infinitevl.bench.peer import PEER_SIZES, check_peer

    check_device(device)
    check_folder(out)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = dtype.value
    if dtype is Dtype.auto:
        chosen = "bfloat16" if torch.device(device).type == "cuda" else "float32"
    if peer is None:
        peer = size.value in PEER_SIZES
    if peer:
        check_peer(size.value)
    held = None if quantization is Quantization.full else quantization.value
    return Bench(name, Options(size.value, device, getattr(torch, chosen), repeats, peer, out, commit, held))


def _list(option: str, text: str | None, default: "tuple[int, ...]") -> list[int]:
    """The numbers of an option.

    Raises:
        InputError: one of them is no whole number above 0.
    """
    from infinitevl.errors import InputError

    if text is None:
        return list(default)
    try:
        numbers = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        numbers = []
    if (not numbers and text.strip()) or any(number < 1 for number in numbers):
        raise InputError(f"{option} is {text!r}; give whole numbers above 0, such as {option} 1024,4096.")
    return numbers
