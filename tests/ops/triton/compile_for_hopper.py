"""Compiles every kernel for an H200 on a machine without a GPU: the interpreter accepts more than a compiler.

Run without triton_kernels()_INTERPRET. Wrappers are called as the model calls them; launches only compile.
"""

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from infinitevl.ops.attention.vision import Segments
from infinitevl.ops.delta_net.train import rule as train_net
from infinitevl.ops.delta_net.triton import chunk as delta_chunk
from infinitevl.ops.delta_net.triton import prepare as delta_prepare
from infinitevl.ops.delta_net.triton import step as delta_step
from infinitevl.ops.linear import train as train_pointwise
from infinitevl.ops.linear.quantized import KINDS, quantize
from infinitevl.ops.linear.triton import fp8_dot, fp8_rows, matvec, matvec_int4, pointwise
from infinitevl.ops.rows import pack
from infinitevl.ops.table import triton_kernels

TRITON = triton_kernels()
EPS = 1e-6
# heads, key and value width; query heads, key heads, head width; ring; hidden
PUBLISHED = (16, 128, 256, 16, 2, 128, 8192, 2048)
TINY = (2, 8, 16, 4, 2, 8, 12, 32)


class NoGpu:
    """A driver that knows what to compile for and nothing else."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_all(sizes: tuple[int, ...], dtype: torch.dtype, length: int) -> None:
    """All kernels of a decoder of these sizes, for many tokens and for one."""
    heads, key, value, query_heads, key_heads, head_dim, slots, hidden = sizes

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype)

    channels = heads * (2 * key + value)
    rows = zeros(1, dtype=torch.int64)
    inner = channels + heads * value + 2 * heads
    for tokens, counts in ((length, None), (length, rows + 1), (1, None)):
        parts = zeros(1, tokens, inner).split([channels, heads * value, heads, heads], dim=-1)
        mixed, gate, a, b = parts
        state = zeros(2, heads, key, value, dtype=torch.float32), zeros(2, 3, channels)
        inputs = (mixed, a, b, zeros(channels, 4), zeros(heads), zeros(heads), *state, rows)
        x = zeros(1, tokens, hidden)
        attention = [query_heads * head_dim, key_heads * head_dim, key_heads * head_dim]
        split = zeros(1, tokens, sum(attention)).split(attention, dim=-1)
        turns = zeros(head_dim // 2, dtype=torch.int64)
        angles = TRITON.rotary_angles(zeros(3, 1, tokens, dtype=torch.int64), turns, turns)
        ring = [zeros(2, key_heads, slots, head_dim) for _ in range(2)]
        window = (*(part.unflatten(-1, (-1, head_dim)) for part in split), *angles, *ring, rows)
        if tokens == 1:
            TRITON.delta_net_step_(*inputs)
            TRITON.window_step_(*window, rows)
            TRITON.window_step_(*window, rows, slots // 4)
        else:
            TRITON.delta_net_chunk_(*inputs, counts)
            TRITON.delta_net_chunk_(*inputs, counts, tuning=delta_prepare.MANY_CHUNKS)
            TRITON.window_chunk_(*window, slots, rows, counts)
            TRITON.window_chunk_(*window, slots - slots // 4, rows, counts, slots // 4)
        TRITON.rms_norm(x, zeros(hidden), EPS)
        TRITON.linear(x, zeros(52, hidden))
        TRITON.norm_linear(x, zeros(hidden), EPS, zeros(inner, hidden))
        TRITON.norm_swiglu(x, zeros(hidden), EPS, zeros(128, hidden))
        TRITON.linear_add(zeros(1, tokens, 64), zeros(hidden, 64), x.clone(), zeros(hidden))
        out = zeros(1, tokens, heads, value, dtype=torch.float32)
        TRITON.gated_norm_linear_add(out, gate, zeros(value), EPS, zeros(hidden, heads * value), x.clone())


def compile_few_bits(hidden: int, inner: int) -> None:
    """Products with weights in few bits, of one row, of a few, and of many in fp8."""
    x = torch.zeros(1, 70, hidden, dtype=torch.bfloat16)
    residual = x.clone()
    for kind in KINDS:
        up = quantize(torch.zeros(2 * inner, hidden, dtype=torch.bfloat16), kind)
        down = quantize(torch.zeros(hidden, inner, dtype=torch.bfloat16), kind)
        for rows in (1, 3, 17):
            middle = TRITON.norm_swiglu(x[:, :rows], x[0, 0], EPS, up)
            TRITON.linear_add(middle, down, residual[:, :rows])
    pair = torch.zeros(1, 70, 2 * inner, dtype=torch.bfloat16)
    rows, _ = fp8_rows.rms_norm_fp8(x, x[0, 0], EPS, x[0, 0])
    heads = torch.zeros(1, 70, 2, hidden // 2)
    for found in (
        fp8_rows.swiglu_fp8(pair),
        fp8_rows.gated_rms_norm_fp8(heads, x, heads[0, 0, 0], EPS),
        rows,
    ):
        weight = torch.zeros(hidden, found.data.shape[1], dtype=torch.float8_e4m3fn)
        for count in (70, 2048):
            data = found.data[:1].expand(count, -1).contiguous()
            scale = torch.zeros(count, 1)
            y = torch.zeros(count, hidden, dtype=torch.bfloat16)
            fp8_dot.add_dot_(y, data, scale, weight, torch.zeros(hidden, 1), y[0])


def compile_training(sizes: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    """All kernels that train, forward and backward, packed and not."""
    heads, key, value, _, _, _, _, hidden = sizes
    channels, tokens = heads * (2 * key + value), sum(lengths)

    def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, requires_grad=True)

    net = [zeros(1, tokens, width) for width in (channels, heads, heads)]
    net += [zeros(*shape, dtype=torch.float32) for shape in ((channels, 4), (heads,), (heads,))]
    state = torch.zeros(1, heads, key, value), torch.zeros(1, 3, channels)
    for packed in (None, pack(lengths, 3, torch.device("cpu"))):
        train_net.delta_net_chunk(*net, *state, None, packed)[0].sum().backward()
    x, out = zeros(1, tokens, hidden), zeros(1, tokens, heads, value)
    train_pointwise.rms_norm(x, zeros(hidden, dtype=torch.float32), EPS).sum().backward()
    train_pointwise.gated_rms_norm(out, out, zeros(value), EPS).sum().backward()
    train_pointwise.swiglu(x, x).sum().backward()
    angles = torch.zeros(1, tokens, value)
    train_pointwise.rotate(out, angles, angles).sum().backward()


def main() -> None:
    names = set()
    original = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        names.add(f"{self.fn.__module__.rsplit('.', 1)[-1]}.{self.fn.__name__}")
        return original(self, *args, grid=grid, warmup=True, **kwargs)

    driver.set_active(NoGpu())
    JITFunction.run = compile_only
    for module in (delta_chunk, delta_prepare, delta_step, fp8_dot, fp8_rows, matvec, matvec_int4, pointwise):
        module.launches_early = lambda x: True
    compile_all(PUBLISHED, torch.bfloat16, 256)
    compile_all(TINY, torch.bfloat16, 16)
    compile_few_bits(2048, 11008)
    compile_few_bits(64, 48)
    compile_training(PUBLISHED, (100, 156))
    compile_training(TINY, (3, 70))
    for patches, heads, width, run in ((1024, 16, 80, 64), (1024, 16, 80, 1024), (32, 2, 16, 16)):
        angles = torch.zeros(2, patches, width)
        qkv = torch.zeros(patches, 3, heads, width, dtype=torch.bfloat16)
        TRITON.vision_attention(qkv, *angles, (Segments(run, None),))
    print(len(names), "kernels compiled:", *sorted(names))


if __name__ == "__main__":
    main()
