"""Compare ways to train through the gated delta rule: time, memory, and errors of the gradients.

    python benchmarks/delta_rule_training.py                # on a GPU: bfloat16, at two shapes
    python benchmarks/delta_rule_training.py --device cpu   # float32, the built-in model's shape, 512 tokens

Each way reads the same packed row of sequences of different lengths, forward and backward. Errors are
relative, ||a - b|| / ||b||, against the definition by chunks in float64 on the same inputs. A way that
is not installed, or refuses, says why in its line. fla-core is asked for its `chunk_gated_delta_rule`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.delta_net.rule import delta_rule_chunk
from infinitevl.ops.reference import delta_rule_by_chunk
from infinitevl.ops.rows import Packed, gather, pack, spread

GAP = 3  # inputs that a convolution of width 4 still sees
REPEATS = 20
NAMES = ("out", "dq", "dk", "dv", "dlog_decay", "dbeta")
Rule = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A shape, with its inputs q, k [1, T, H, K], v [1, T, H, V], log_decay, beta [1, T, H]."""

    name: str
    inputs: list[Tensor]
    d_out: Tensor
    packed: Packed

    @property
    def state(self) -> Tensor:
        """An empty state [1, H, K, V]."""
        q, v = self.inputs[0], self.inputs[2]
        return torch.zeros(1, q.shape[2], q.shape[3], v.shape[3], device=q.device)


def make_case(
    name: str, heads: int, key: int, value: int, lengths: list[int], dtype: torch.dtype, device: torch.device
) -> Case:
    """Draw inputs as layers have them: unit keys that are partly alike, slow and fast decays."""
    generator = torch.Generator(device).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=device)
    length = sum(lengths)
    q, k = draw(1, length, heads, key), draw(1, length, heads, key) + draw(1, 1, heads, key)
    q, k = F.normalize(q, dim=-1) * key**-0.5, F.normalize(k, dim=-1)
    rates = torch.linspace(-8, 0, heads, device=device)
    log_decay, beta = -F.softplus(draw(1, length, heads) + rates), draw(1, length, heads).sigmoid()
    v, d_out = draw(1, length, heads, value).to(dtype), draw(1, length, heads, value).to(dtype)
    inputs = [q.to(dtype), k.to(dtype), v, log_decay, beta]
    return Case(name, inputs, d_out, pack(lengths, GAP, device))


def definition(case: Case) -> Rule:
    """The definition, one sequence after the other."""

    def rule(*inputs: Tensor) -> Tensor:
        state = case.state.to(inputs[0].dtype)
        sequences = zip(*(x.split(case.packed.lengths, dim=1) for x in inputs), strict=True)
        return torch.cat([delta_rule_by_chunk(*each, state)[0] for each in sequences], dim=1)

    return rule


def ours(case: Case) -> Rule:
    """Our Triton kernels; inputs are spread before, as convolution and gates leave them in a layer."""
    from infinitevl.ops.delta_net.train.rule import delta_rule

    firsts, place, source = case.packed.firsts, case.packed.place, case.packed.source
    return lambda *inputs: delta_rule(*inputs, case.state, firsts, place, source)[0]


def fla(case: Case) -> Rule:
    """fla's kernels, on the row as it is."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    cu_seqlens = case.packed.cu_seqlens.long()
    return lambda *inputs: chunk_gated_delta_rule(*inputs, scale=1.0, cu_seqlens=cu_seqlens)[0]


def plain(case: Case) -> Rule:
    """Autograd through `delta_rule_chunk` of `ops.delta_net.rule`, in float32."""
    ends = case.packed.ends
    return lambda *inputs: gather(delta_rule_chunk(*inputs, case.state, ends=ends)[0], case.packed)


WAYS = {
    "ours, Triton": (ours, True),
    "fla-core": (fla, False),
    "torch autograd": (plain, True),
}


def leaves_of(case: Case, is_spread: bool) -> list[Tensor]:
    """Fresh inputs that take gradients, spread out where the way reads them so."""
    inputs = [spread(x, case.packed) if is_spread else x.clone() for x in case.inputs]
    return [x.requires_grad_() for x in inputs]


def run(rule: Rule, leaves: list[Tensor], d_out: Tensor) -> tuple[Tensor, ...]:
    """Output and the gradients of all inputs."""
    out = rule(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, d_out.to(out.dtype))


def milliseconds(act: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def errors(case: Case, found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], is_spread: bool) -> list[float]:
    """Of output and gradients, relative to the definition's."""
    gradients = [gather(x, case.packed) if is_spread else x for x in found[1:]]
    pairs = zip((found[0], *gradients), wanted, strict=True)
    return [((x.double() - y).norm() / y.norm()).item() for x, y in pairs]


def measure(case: Case, name: str, wanted: tuple[Tensor, ...], repeats: int) -> str:
    """One line of the table."""
    make, is_spread = WAYS[name]
    device = case.d_out.device
    leaves = leaves_of(case, is_spread)
    try:
        rule = make(case)
        with torch.no_grad():
            forward = f"{milliseconds(lambda: rule(*leaves), device, repeats):9.2f}"
    except (ImportError, RuntimeError) as error:
        return f"{name:22s} {type(error).__name__}: {error}"
    try:
        found = run(rule, leaves, case.d_out)
    except RuntimeError as error:
        return f"{name:22s} {forward}  backward refused: {type(error).__name__}: {error}"
    both = milliseconds(lambda: run(rule, leaves, case.d_out), device, repeats)
    peak = f"{_peak(rule, leaves, case.d_out):9.0f}" if device.type == "cuda" else f"{'':>9s}"
    shown = "".join(f"{error:12.1e}" for error in errors(case, found, wanted, is_spread))
    return f"{name:22s} {forward} {both:9.2f} {peak} {shown}"


def _peak(rule: Rule, leaves: list[Tensor], d_out: Tensor) -> float:
    """MB that a forward and backward pass takes beside its inputs."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(rule, leaves, d_out)
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def compare(case: Case, repeats: int) -> None:
    """Print the table of one shape."""
    leaves = [x.double().requires_grad_() for x in case.inputs]
    wanted = run(definition(case), leaves, case.d_out)
    print(f"\n{case.name}: sequences of {list(case.packed.lengths)} tokens, {case.inputs[0].dtype}")
    heads = ("forward", "both", "peak MB")
    columns = "".join(f"{name:>12s}" for name in NAMES)
    print(f"{'':22s} " + " ".join(f"{head:>9s}" for head in heads) + f" {columns}")
    for name in WAYS:
        print(measure(case, name, wanted, repeats), flush=True)


def cases(device: torch.device) -> list[Case]:
    """What is measured on this device."""
    if device.type != "cuda":
        lengths = [1, 63, 64, 84, 300]
        return [make_case("built-in model", 4, 64, 128, lengths, torch.float32, device)]
    lengths = [1, 63, 64, 65, 1000, 2999, 4000]
    return [
        make_case("published 4B", 16, 128, 256, lengths, torch.bfloat16, device),
        make_case("built-in model", 4, 64, 128, lengths, torch.bfloat16, device),
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    """Print the tables of a device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="calls that are timed")
    options = parser.parse_args()
    device = torch.device(options.device)
    named = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    packages = ", ".join(f"{name} {_version(name)}" for name in ("torch", "triton", "fla-core"))
    print(f"{device}: {named}; {packages}; times in ms")
    for case in cases(device):
        compare(case, options.repeats)


if __name__ == "__main__":
    main()
