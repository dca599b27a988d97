"""Products of one or a few rows with a weight matrix: bound by how fast the weights arrive.

Each program owns a few rows of the weight. With early launch it has their first tile on the way before the
kernel that makes x has ended. What stands around the product is done here too, since x is small: the norm
before it (its factor 1 / rms is applied to the sums, so that nothing waits for it), SwiGLU and the residual
after it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.early import launches_early
from infinitevl.ops.linear.quantized import Quantized, Weight
from infinitevl.ops.linear.triton.pointwise import as_rows


@dataclass(frozen=True)
class Tile:
    """How much of the weight a program works on at once, and with how many warps, buffers and registers."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int = 1
    max_registers: int | None = None


@dataclass(frozen=True)
class Product:
    """y = x @ weight.T and what stands around it; every part but x and weight may be absent.

    Attributes:
        x: [..., inputs]; with `gate`, the heads [..., H, V] that are to be normalised and gated.
        weight: [outputs, inputs], rows of any stride, or in few bits; with `swiglu`, the rows of the gate,
            then those of up.
        norm_weight: [inputs] of an RMS norm over x; with `gate`, [V] of one over each head.
        residual: [..., outputs], added.
    """

    x: Tensor
    weight: Weight
    bias: Tensor | None = None
    residual: Tensor | None = None
    norm_weight: Tensor | None = None
    eps: float = 0.0
    gate: Tensor | None = None
    swiglu: bool = False

    @property
    def stored(self) -> Tensor:
        """What holds the values of the weight."""
        return self.weight.data if isinstance(self.weight, Quantized) else self.weight

    @property
    def scale(self) -> Tensor | None:
        """Scales of a weight in few bits."""
        return self.weight.scale if isinstance(self.weight, Quantized) else None

    @property
    def inputs(self) -> int:
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        return self.weight.shape[0] // 2 if self.swiglu else self.weight.shape[0]

    @property
    def num_rows(self) -> int:
        return self.x.numel() // self.inputs

    def empty(self) -> Tensor:
        """The result's buffer, [..., outputs]."""
        like = self.x if self.gate is None else self.gate
        return torch.empty(*like.shape[:-1], self.outputs, dtype=self.weight.dtype, device=like.device)

    def pointers(self) -> dict[str, Tensor | int | float | bool | None]:
        """The kernels' common arguments."""
        x = as_rows(self.x, self.inputs)
        gate = None if self.gate is None else as_rows(self.gate, self.inputs)
        residual = None if self.residual is None else as_rows(self.residual, self.outputs)
        return {
            "x_ptr": x, "x_stride": x.stride(0),
            "norm_ptr": self.norm_weight, "eps": self.eps,
            "gate_ptr": gate, "gate_stride": 0 if gate is None else gate.stride(0),
            "weight_ptr": self.stored, "weight_stride": self.stored.stride(0), "scale_ptr": self.scale,
            "bias_ptr": self.bias,
            "residual_ptr": residual, "residual_stride": 0 if residual is None else residual.stride(0),
            "outputs": self.outputs, "INPUTS": self.inputs,
            "SWIGLU": self.swiglu,
        }  # fmt: skip


def matvec_tile(product: Product) -> Tile:
    """Measured on an H200: a full row of 2048 at once, and enough programs for every multiprocessor."""
    block_k = min(triton.next_power_of_2(product.inputs), 2048)
    if isinstance(product.weight, Quantized):
        is_wide, is_long = product.outputs > 8192 and not product.swiglu, product.inputs > 4096
        return Tile(2 if is_long else 8 if is_wide else 4, 2 * block_k if is_long else block_k, 4)
    if product.gate is not None:
        block_k = max(block_k, triton.next_power_of_2(product.x.shape[-1]))
        return Tile(8, block_k, 8) if product.num_rows == 1 else Tile(2, block_k, 4)
    if product.inputs > 4096:
        return Tile(1, block_k, 4) if product.num_rows == 1 else Tile(4, block_k // 2, 4, max_registers=128)
    return Tile(2 if product.swiglu or product.num_rows > 1 else 4, block_k, 4)


def matvec(product: Product) -> Tensor:
    """The product for one to four rows, on the ordinary cores; weights in full, int8 or fp8."""
    y, tile, early = product.empty(), matvec_tile(product), launches_early(product.stored)
    head = 0 if product.gate is None else product.x.shape[-1]
    _matvec_kernel[(triton.cdiv(product.outputs, tile.block_n),)](
        y_ptr=y, **product.pointers(), ROWS=product.num_rows, HEAD=head,
        BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, EARLY=early, ASSEMBLY=not knobs.runtime.interpret,
        num_warps=tile.num_warps, maxnreg=tile.max_registers, launch_pdl=early,
    )  # fmt: skip
    return y


def gates_fit(head: int) -> bool:
    """Whether `matvec` can normalise and gate heads of this width: whole heads must fill a tile."""
    return head == triton.next_power_of_2(head)


@triton.jit
def _tile(ptrs, k, start: tl.constexpr, INPUTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """One tile of the weight, 0 beyond its last column."""
    if start + BLOCK_K <= INPUTS:
        return tl.load(ptrs + start, eviction_policy="evict_first")
    else:
        inside = start + k[None, :] < INPUTS
        return tl.load(ptrs + start, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _values(tile, ASSEMBLY: tl.constexpr):
    """A tile of the weight in float32, without scale.

    A byte becomes the mantissa of 2^23, and what that adds is taken off: conversions of integers are slow.
    """
    if ASSEMBLY and tile.dtype == tl.int8:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 bytes;
            xor.b32 bytes, $4, 0x80808080;
            prmt.b32 $0, bytes, 0x4B000000, 0x7440;
            prmt.b32 $1, bytes, 0x4B000000, 0x7441;
            prmt.b32 $2, bytes, 0x4B000000, 0x7442;
            prmt.b32 $3, bytes, 0x4B000000, 0x7443;
            add.f32 $0, $0, 0fCB000080;
            add.f32 $1, $1, 0fCB000080;
            add.f32 $2, $2, 0fCB000080;
            add.f32 $3, $3, 0fCB000080;
            }""",
            "=r,=r,=r,=r,r", [tile], dtype=tl.float32, is_pure=True, pack=4,
        )  # fmt: skip
    return tile.to(tl.float32)


@triton.jit
def _nothing():
    """A tuple to which the tensors of one row after another are added."""
    return ()


@triton.jit
def _matvec_kernel(
    x_ptr, norm_ptr, gate_ptr, weight_ptr, scale_ptr, bias_ptr, residual_ptr, y_ptr,
    x_stride, gate_stride, weight_stride, residual_stride, outputs, eps,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, HEAD: tl.constexpr, SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EARLY: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_N outputs of all rows; the next tile of the weight is on its way while one is summed."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows beyond the last are the last again, not masked: the loads stay plain.
    ptrs = weight_ptr + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * weight_stride + k[None, :]
    up_ptrs = ptrs + tl.cast(outputs, tl.int64) * weight_stride
    next_tile = _tile(ptrs, k, 0, INPUTS, BLOCK_K)
    if SWIGLU:
        next_up = _tile(up_ptrs, k, 0, INPUTS, BLOCK_K)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    sums = _nothing()
    ups = _nothing()
    squares = _nothing()
    for _ in tl.static_range(ROWS):
        sums += (tl.zeros([BLOCK_N, BLOCK_K], tl.float32),)
        ups += (tl.zeros([BLOCK_N, BLOCK_K], tl.float32),)
        squares += (tl.zeros([BLOCK_K], tl.float32),)
    for start in tl.static_range(0, INPUTS, BLOCK_K):
        tile = _values(next_tile, ASSEMBLY)
        if SWIGLU:
            up_tile = _values(next_up, ASSEMBLY)
        if start + BLOCK_K < INPUTS:
            next_tile = _tile(ptrs, k, start + BLOCK_K, INPUTS, BLOCK_K)
            if SWIGLU:
                next_up = _tile(up_ptrs, k, start + BLOCK_K, INPUTS, BLOCK_K)
        new_sums = _nothing()
        new_ups = _nothing()
        new_squares = _nothing()
        for row in tl.static_range(ROWS):
            inside = start + k < INPUTS
            x = tl.load(x_ptr + row * x_stride + start + k, mask=inside, other=0).to(tl.float32)
            new_squares += (squares[row] + x * x,)
            if HEAD > 0:
                x = _gated(x, norm_ptr, gate_ptr + row * gate_stride + start, k, inside, eps, HEAD, BLOCK_K)
            elif norm_ptr is not None:
                x *= tl.load(norm_ptr + start + k, mask=inside, other=0).to(tl.float32)
            new_sums += (sums[row] + tile * x[None, :],)
            if SWIGLU:
                new_ups += (ups[row] + up_tile * x[None, :],)
        sums, squares = new_sums, new_squares
        if SWIGLU:
            ups = new_ups
    for row in tl.static_range(ROWS):
        scale = 1.0
        if HEAD == 0 and norm_ptr is not None:
            scale = tl.rsqrt(tl.sum(squares[row]) / INPUTS + eps)
        y = tl.sum(sums[row], 1) * scale
        if scale_ptr is not None:
            y *= tl.load(scale_ptr + n, mask=n < outputs, other=0)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + n, mask=n < outputs, other=0).to(tl.float32)
        if SWIGLU:
            up = tl.sum(ups[row], 1) * scale
            if scale_ptr is not None:
                up *= tl.load(scale_ptr + outputs + n, mask=n < outputs, other=0)
            if bias_ptr is not None:
                up += tl.load(bias_ptr + outputs + n, mask=n < outputs, other=0).to(tl.float32)
            y = y * tl.sigmoid(y) * up
        if residual_ptr is not None:
            y += tl.load(residual_ptr + row * residual_stride + n, mask=n < outputs, other=0).to(tl.float32)
        tl.store(y_ptr + row * outputs + n, y.to(y_ptr.dtype.element_ty), mask=n < outputs)


@triton.jit
def _gated(x, norm_ptr, gate_ptr, k, inside, eps, HEAD: tl.constexpr, BLOCK_K: tl.constexpr):
    """rms_norm(x) * SiLU(gate) of the whole heads in x [BLOCK_K]."""
    heads = tl.reshape(x, [BLOCK_K // HEAD, HEAD])
    heads *= tl.rsqrt(tl.sum(heads * heads, 1) / HEAD + eps)[:, None]
    gate = tl.load(gate_ptr + k, mask=inside, other=0).to(tl.float32)
    weight = tl.load(norm_ptr + k % HEAD).to(tl.float32)
    return tl.reshape(heads, [BLOCK_K]) * weight * (gate * tl.sigmoid(gate))
