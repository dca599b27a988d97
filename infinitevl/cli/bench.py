"""`infinitevl bench`: measurements as lines of JSON, and the figures drawn from them."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinitevl.cli.command import (
    Attention,
    AttentionOption,
    DeviceOption,
    Dtype,
    FrameMode,
    Quantization,
    QuantizationOption,
    check_device,
    check_folder,
    command,
)
from infinitevl.errors import InputError

if TYPE_CHECKING:
    from infinitevl.bench.bench import Bench

app = typer.Typer(
    help="Measure speed and memory, beside a stock Transformer of the same shape, and draw the figures.",
    no_args_is_help=True,
)


_BY_NAME = inspect.Parameter.KEYWORD_ONLY


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


@dataclass(frozen=True)
class Shared:
    """The options that measurements share; a command may lack some of the last three."""

    size: SizeOption = Size.builtin
    device: DeviceOption = None
    dtype: NumberOption = Dtype.auto
    out: OutOption = None
    commit: CommitOption = None
    attention: AttentionOption = Attention.auto
    repeats: RepeatsOption = 1
    peer: PeerOption = False
    quantization: QuantizationOption = Quantization.full

    def bench(self, name: str) -> "Bench":
        """Check the options and make a `Bench`; `name` stands in every measured line."""
        check_folder(self.out)
        import torch

        from infinitevl.bench.bench import Bench, Options
        from infinitevl.bench.peer import PEER_SIZES, check_peer

        check_device(self.device)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = self.dtype.value
        if self.dtype is Dtype.auto:
            dtype = "bfloat16" if torch.device(device).type == "cuda" else "float32"
        size = self.size.value
        peer = size in PEER_SIZES if self.peer is None else self.peer
        if peer:
            check_peer(size)
        held = None if self.quantization is Quantization.full else self.quantization.value
        number_format = getattr(torch, dtype)
        measured = self.repeats, peer, self.out, self.commit, held, self.attention.variant
        options = Options(size, device, number_format, *measured)
        return Bench(name, options)


def measurement(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that takes a `Shared` as its first argument, and give it the options of one.

    `defaults` names those of repeats, peer and quantization that the command has, with their defaults.
    """
    options = [
        inspect.Parameter(
            option.name, _BY_NAME, default=defaults.get(option.name, option.default), annotation=option.type
        )
        for option in fields(Shared)
        if option.name in defaults or option.name not in ("repeats", "peer", "quantization")
    ]

    def register(function: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            shared = Shared(**{option.name: given.pop(option.name) for option in options})
            function(shared, **given)

        _, *own = inspect.signature(function).parameters.values()
        parameters = [*(parameter.replace(kind=_BY_NAME) for parameter in own), *options]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        return command(app)(run)

    return register


@measurement(repeats=20, peer=None, quantization=Quantization.full)
def stream(
    shared: Shared,
    frames: Annotated[str | None, _numbers("--frames", "How many frames came before", "50 to 1600")] = None,
    mode: ModeOption = FrameMode.image,
) -> None:
    """Time of a frame from host memory, its latency, memory, and a question's first token."""
    counts = _list("--frames", frames)
    bench = shared.bench("stream")
    from infinitevl.bench import stream as benchmark

    benchmark.run(bench, list(benchmark.FRAMES) if counts is None else counts, mode.value)


@measurement(repeats=20, peer=None, quantization=Quantization.full)
def decode(
    shared: Shared,
    contexts: Annotated[
        str | None, _numbers("--contexts", "Tokens before the decoded one", "1024 to 1048576")
    ] = None,
    answers: Annotated[
        str | None, _numbers("--answers", "How many answers grow together, beside one alone", "8,64")
    ] = None,
) -> None:
    """Time of a decoded token by context; the Transformer eager and captured in a CUDA graph.

    With --quantization our lines give the error of logits and of a picture's tokens against full precision,
    and how often the likeliest token is the same; so they do in stream, streams and prefill.
    """
    lengths, counts = _list("--contexts", contexts), _list("--answers", answers)
    bench = shared.bench("decode")
    from infinitevl.bench import decode as benchmark

    lengths = list(benchmark.CONTEXTS) if lengths is None else lengths
    benchmark.run(bench, lengths, list(benchmark.ANSWERS) if counts is None else counts)


@measurement(repeats=5, peer=None, quantization=Quantization.full)
def prefill(
    shared: Shared,
    lengths: Annotated[str | None, _numbers("--lengths", "Tokens of the prompt", "4096,32768,262144")] = None,
) -> None:
    """Time to read a long text prompt."""
    counts = _list("--lengths", lengths)
    bench = shared.bench("prefill")
    from infinitevl.bench import prefill as benchmark

    benchmark.run(bench, list(benchmark.LENGTHS) if counts is None else counts)


@measurement(repeats=20, quantization=Quantization.full)
def streams(
    shared: Shared,
    counts: Annotated[str | None, _numbers("--counts", "Streams on the device", "1,2,4,8,16")] = None,
    mode: ModeOption = FrameMode.image,
) -> None:
    """Time of a step in which each of many streams sees a frame."""
    numbers = _list("--counts", counts)
    bench = shared.bench("streams")
    from infinitevl.bench import streams as benchmark

    benchmark.run(bench, list(benchmark.COUNTS) if numbers is None else numbers, mode.value)


@measurement(repeats=50)
def fork(shared: Shared) -> None:
    """Time to copy a stream."""
    bench = shared.bench("fork")
    from infinitevl.bench import fork as benchmark

    benchmark.run(bench)


@measurement()
def memory(
    shared: Shared,
    tokens: Annotated[
        str | None, _numbers("--tokens", "Length of the stream when memory is read", "20000,1000000")
    ] = None,
    mode: ModeOption = FrameMode.image,
) -> None:
    """Memory of one stream after many tokens and after very many."""
    lengths = _list("--tokens", tokens)
    bench = shared.bench("memory")
    from infinitevl.bench import memory as benchmark

    benchmark.run(bench, list(benchmark.TOKENS) if lengths is None else lengths, mode.value)


class ShardingChoice(StrEnum):
    """How weights are sharded over several processes."""

    fsdp = "fsdp"
    grad_op = "fsdp-grad-op"


class StageChoice(StrEnum):
    """Stages whose steps can be measured."""

    distill_layers = "distill-layers"
    distill_logits = "distill-logits"
    sft = "sft"
    long_sft = "long-sft"


@measurement()
def train(
    shared: Shared,
    stage: Annotated[StageChoice, typer.Option("--stage", help="Which stage's step.")] = StageChoice.sft,
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
        ShardingChoice, typer.Option("--sharding", help="Of weights, with several processes.")
    ] = ShardingChoice.fsdp,
) -> None:
    """Time, memory and losses of a training step; with torchrun on several GPUs, and how that scales."""
    if int(os.environ.get("WORLD_SIZE", "1")) > rows:
        raise InputError(f"--rows is {rows}: every process needs a row; give at least as many as there are.")
    bench = shared.bench("train")
    from infinitevl.bench import train as benchmark

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


def _list(option: str, text: str | None) -> list[int] | None:
    """Parse the numbers of an option; None if it was not given.

    Raises:
        InputError: one of them is no whole number above 0.
    """
    if text is None:
        return None
    try:
        numbers = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        numbers = []
    if (not numbers and text.strip()) or any(number < 1 for number in numbers):
        raise InputError(f"{option} is {text!r}; give whole numbers above 0, such as {option} 1024,4096.")
    return numbers
