"""What all commands share: their options, and errors that need no traceback."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from infinitevl.errors import InfiniteVLError, InputError

_SMALL_MODEL = 100_000_000  # parameters


class Dtype(StrEnum):
    """Number formats that a model can run in; auto is what its folder says."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(StrEnum):
    """Quantizations of the decoder's products; full keeps the number format of the weights."""

    full = "full"
    int8 = "int8"
    int4 = "int4"
    fp8 = "fp8"


class Attention(StrEnum):
    """Variants of attention: sinks and a window, a window alone, all keys; auto is what a folder says."""

    auto = "auto"
    streaming = "streaming"
    sliding = "sliding"
    full = "full"

    @property
    def variant(self) -> str | None:
        """What `load` takes."""
        return None if self is Attention.auto else self.value


class FrameMode(StrEnum):
    """How frames reach the model: each as a picture, or two to a temporal patch."""

    image = "image"
    video = "video"


ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="FOLDER_OR_NAME", help="A folder, or a name from `infinitevl models`."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps, ...; default: the best one here.")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Number format of the weights.")]
QuantizationOption = Annotated[
    Quantization,
    typer.Option("--quantization", help="Hold the decoder's products in 8 or 4 bits: less memory."),
]
AttentionOption = Annotated[
    Attention,
    typer.Option(
        "--attention", help="Keys that attention keeps: the first and the last ones, the last, or all."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0.0, help="0 always takes the likeliest token.")
]
ReportOption = Annotated[
    str | None,
    typer.Option("--report", metavar="OUT.html", help="Write a self-contained page about the stream."),
]
AllowPrivateOption = Annotated[
    bool, typer.Option("--allow-private", help="Fetch from addresses of a private network too.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


def command(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command that ends with exit code 2 and one message on an error of ours.

    It gets a `--debug` option of its own, which shows the traceback instead.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, debug: bool, **options: Any) -> None:
            try:
                function(**options)
            except InfiniteVLError as error:
                if debug:
                    raise
                _fail(error)

        debug = inspect.Parameter(
            "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption
        )
        own = inspect.signature(function)
        signature = own.replace(parameters=[*own.parameters.values(), debug])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {**function.__annotations__, "debug": DebugOption}
        return app.command()(run)

    return register


def _fail(error: InfiniteVLError) -> None:
    from infinitevl.cli.output import print_error

    print_error(error)
    raise typer.Exit(2) from error


def load_model(
    name: str | None,
    device: str | None,
    dtype: str,
    quantization: str = Quantization.full,
    attention: str | None = None,
) -> tuple[Any, Any]:
    """Load the model and its processor that the options of a command name.

    Raises:
        InputError: no such device here.
        CheckpointError: no model of this name, or a folder that does not make one.
    """
    import torch
    import transformers

    from infinitevl.engine.loading import load

    check_device(device)
    if name is None or not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    number_format = None if dtype == "auto" else getattr(torch, dtype)
    held = None if quantization == Quantization.full else str(quantization)
    chosen: dict[str, Any] = {"quantization": held, "attention": attention}
    model, processor = load(name, dtype=number_format, device=device, **chosen)
    _choose_threads(model)
    return model, processor


def _choose_threads(model: Any) -> None:
    """Use one thread for a small model on a CPU, unless OMP_NUM_THREADS is set."""
    import torch

    # Its matrices are so small that threads mostly wait for each other: on a busy machine two of them take
    # several times as long as one.
    is_small = model.device.type == "cpu" and model.num_parameters() < _SMALL_MODEL
    if is_small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def check_device(name: str | None) -> None:
    """Check that tensors can be on the device of this name; None is the default one.

    Raises:
        InputError: it cannot; the message says which devices there are.
    """
    from infinitevl.engine.loading import checked_device

    if name is None:
        return
    try:
        checked_device(name)
    except InputError as error:
        raise InputError(f"--{error}") from error


def check_folder(path: str | None) -> None:
    """Check that a file can be written at `path` later, before hours of watching.

    Raises:
        InputError: its folder does not exist or cannot be written, or the path is no file.
    """
    if path is None:
        return
    try:
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            raise InputError(f"could not write {path}: there is no folder {Path(path).parent}; make it first")
        if Path(path).is_dir():
            raise InputError(f"could not write {path}: it is a folder; give the name of a file in it")
        if Path(path).exists() and not Path(path).is_file():
            raise InputError(f"could not write {path}: it is a device or a pipe; give a file's name")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"could not write {path}: nothing may be written in {folder}; choose another")
    except (OSError, ValueError) as error:
        raise InputError(f"could not write {path!r}: {error}; give the name of a file") from error


def note_of(model: str | None) -> str:
    """What is said once under the first answer of a model: of the built-in one, what it knows."""
    from infinitevl.model.opening import is_builtin

    known = "drawings of things, signs, digits, flags, coloured shapes and streams of these, and nothing else"
    return f"(The small built-in model knows {known}.)" if is_builtin(model) else ""
