"""`infinitevl doctor`: what this machine has, which kernels will run and why, and how many streams fit."""

import importlib.metadata
import io
import itertools
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infinitevl.cli.command import check_device
from infinitevl.cli.output import print_json
from infinitevl.cli.pace import frames_per_second, is_quick
from infinitevl.cli.sizes import growth_per_token, state_bytes, weight_bytes
from infinitevl.config import InfiniteVLConfig
from infinitevl.engine.loading import find
from infinitevl.errors import CheckpointError, InfiniteVLError
from infinitevl.evaluation.units import show_bytes
from infinitevl.model.attention_variants import STREAMING, apply_variant_
from infinitevl.model.opening import is_builtin
from infinitevl.ops.table import describe

REQUIRED = ("torch", "transformers", "accelerate", "av", "tokenizers", "safetensors", "pillow")
OPTIONAL = {
    "matplotlib": "loss curves and figures: pip install 'infinitevl[plot]'",
    "pydantic": "recipes of training: pip install 'infinitevl[train]'",
    "peft": "LoRA: pip install 'infinitevl[train]'",
    "datasets": "training data of others: pip install 'infinitevl[train]'",
    "triton": "kernels for CUDA; torch for CUDA brings it along",
}
_STATE = "state of one stream, of constant size"


@dataclass(frozen=True)
class Finding:
    """One fact about this machine; `ok` is None where nothing can be wrong, `note` says why or what to do."""

    section: str
    name: str
    value: str
    ok: bool | None = None
    note: str = ""


def inspect_machine(
    model: str | None, device: str | None, dtype: str, attention: str | None = None
) -> Iterator[Finding]:
    """Yield the findings one by one; `model` is a folder or a name, None for the built-in one."""
    yield from _machine()
    yield from _packages()
    yield from _kernels(device)
    yield from _video()
    yield from _streams(model, device, dtype, attention)


def show_findings(
    model: str | None, device: str | None, dtype: str, attention: str | None, *, as_json: bool
) -> None:
    """Print the findings as a table, or one JSON object a line; exit code 1 if something is wrong."""
    check_device(device)
    wrong: list[Finding] = []
    findings = _collecting(inspect_machine(model, device, dtype, attention), wrong)
    if as_json:
        for finding in findings:
            print_json(asdict(finding))
    else:
        _print_tables(findings)
    if wrong:
        raise typer.Exit(1)


def _collecting(findings: Iterator[Finding], wrong: list[Finding]) -> Iterator[Finding]:
    """Yield the findings, and add the bad ones to `wrong`."""
    for finding in findings:
        if finding.ok is False:
            wrong.append(finding)
        yield finding


def _print_tables(findings: Iterator[Finding]) -> None:
    console = Console(highlight=False)
    for section, group in itertools.groupby(findings, key=lambda finding: finding.section):
        rows = list(group)
        shared = rows[0].note if len(rows) > 1 and len({row.note for row in rows}) == 1 else ""
        console.print(Text(section, style="bold").append(f" · {shared}" if shared else "", "not bold dim"))
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=24)
        table.add_column(overflow="fold")
        for finding in rows:
            table.add_row(*_row(finding, finding.note if not shared else ""))
        console.print(table)


def _row(finding: Finding, note: str) -> tuple[Text, Text]:
    mark, style = {True: ("✓ ", "green"), False: ("✗ ", "red"), None: ("  ", "")}[finding.ok]
    return Text(mark + finding.name, style=style), Text(finding.value).append(note and f" · {note}", "dim")


def _machine() -> Iterator[Finding]:
    section = "machine"
    yield Finding(section, "python", platform.python_version(), note=platform.platform())
    memory = psutil.virtual_memory()
    free = f"{show_bytes(memory.available)} free of {show_bytes(memory.total)}"
    yield Finding(section, "memory", free)
    yield Finding(
        section, "cpu", f"{psutil.cpu_count()} cores", note=f"torch uses {torch.get_num_threads()} threads"
    )
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} was built " + (
            f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU"
        )
        yield Finding(section, "gpu", "none that torch can use", note=built)
    for index in range(torch.cuda.device_count()):
        free_bytes, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding(
            section, f"gpu {index}", name, True, f"{show_bytes(free_bytes)} free of {show_bytes(total)}"
        )
    if torch.backends.mps.is_available():
        yield Finding(section, "gpu", "Apple (mps)", True)


def _packages() -> Iterator[Finding]:
    for name in REQUIRED:
        version = _version(name)
        yield Finding(
            "packages",
            name,
            version or "missing",
            version is not None,
            "" if version else f"pip install {name}",
        )
    for name, use in OPTIONAL.items():
        yield Finding("optional packages", name, _version(name) or "not installed", note=use)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernels(device: str | None) -> Iterator[Finding]:
    for choice in describe(device):
        yield Finding(choice.moment, choice.op, choice.kernel, note=choice.why)


def _video() -> Iterator[Finding]:
    from infinitevl.processing.sources.opening import open_source

    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "three.gif"
            path.write_bytes(_moving_picture(3))
            with open_source(path) as source:
                count = sum(1 for _ in source)
    except (InfiniteVLError, ImportError) as error:
        yield Finding("video", "decoding", "fails", False, str(error))
        return
    yield Finding("video", "decoding", f"{count} of 3 frames of a test clip", count == 3)


def _moving_picture(num_frames: int) -> bytes:
    from PIL import Image

    pictures = [Image.new("RGB", (32, 32), (80 * index, 40, 200)) for index in range(num_frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return buffer.getvalue()


def _streams(model: str | None, device: str | None, dtype: str, attention: str | None) -> Iterator[Finding]:
    try:
        own = _config_of(model)
        if attention is not None:
            apply_variant_(own, attention)
        number_format = _number_format(model, device, dtype, own)
        yield from _capacity("this model", own, number_format, device)
        yield from _pace(model, own, number_format, device, attention)
    except InfiniteVLError as error:
        yield Finding(_STATE, "this model", "unknown", False, str(error))
    published, streaming = InfiniteVLConfig(), InfiniteVLConfig()
    apply_variant_(streaming, STREAMING)
    yield from _capacity("published 4B", published, torch.bfloat16, device)
    yield from _capacity("published 4B, streaming", streaming, torch.bfloat16, device)


def _number_format(
    model: str | None, device: str | None, dtype: str, config: InfiniteVLConfig
) -> torch.dtype:
    """Return the dtype that `load` would choose."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if _place(device).type == "cuda":
        return torch.bfloat16
    own = None if is_builtin(model) else config.dtype
    return own if isinstance(own, torch.dtype) else torch.float32


def _config_of(model: str | None) -> InfiniteVLConfig:
    folder = find(model)
    try:
        return InfiniteVLConfig.from_pretrained(folder)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"no config.json could be read from {str(folder)!r}: {reason}") from error


def _capacity(
    name: str, config: InfiniteVLConfig, dtype: torch.dtype, device: str | None
) -> Iterator[Finding]:
    """Say how large a stream is, and how many fit, from the config alone."""
    size = state_bytes(config.text_config, dtype)
    overtaken = size // growth_per_token(config.text_config, dtype)
    value = f"{show_bytes(size)} in {str(dtype).removeprefix('torch.')}"
    yield Finding(_STATE, name, value, note=f"a full-attention cache is larger from token {overtaken:,} on")
    place, weights = _place(device), weight_bytes(config, dtype)
    free = _free_bytes(place)
    fit = _room(config, dtype, place)
    note = f"{show_bytes(free)} free, {show_bytes(weights)} for the weights, less what steps work with"
    yield Finding(_STATE, f"streams of {name}", f"{fit:,} fit on {place}", fit > 0, note)


def _pace(
    model: str | None,
    config: InfiniteVLConfig,
    dtype: torch.dtype,
    device: str | None,
    attention: str | None,
) -> Iterator[Finding]:
    """Say how many streams this machine computes in time, of a model that is quickly loaded."""
    fit = _room(config, dtype, _place(device))
    if not fit or not is_quick(model, config, dtype):
        return
    name = "streams in time"
    try:
        rate = frames_per_second(model, _place(device), dtype, fit, attention)
    except InfiniteVLError as error:
        yield Finding(_STATE, name, "not measured", note=str(error))
        return
    value = f"{min(fit, int(rate)):,} keep up at one frame a second"
    yield Finding(
        _STATE,
        name,
        value,
        note=f"measured here, beside what else runs: {rate:,.1f} frames a second in all, no questions",
    )


def _room(config: InfiniteVLConfig, dtype: torch.dtype, place: torch.device) -> int:
    """Return how many streams fit beside the weights."""
    free = max(0, _free_bytes(place) - weight_bytes(config, dtype))
    return free // state_bytes(config.text_config, dtype)


def _place(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _free_bytes(place: torch.device) -> int:
    """Return the free memory of a GPU, or of the machine."""
    return torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else psutil.virtual_memory().available
