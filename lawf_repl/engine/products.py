"""Products with frozen float32 matrices on a CPU, by the faster of the two libraries that torch brings along.

In float32 torch hands every product to MKL, which on processors that are not Intel's takes code for narrower vectors than they have: 190
GFLOP/s and 25 GB/s where oneDNN, in the same build of torch, reaches 430 and 38 (two cores of an AMD EPYC of 2025, with AVX-512). Where there is
nothing wider than AVX2 it is MKL that is faster, by a tenth forward and up to twice backward (AMD EPYC of 2021). oneDNN's product is what torch's own
compiler calls (`mkldnn::_linear_pointwise`); it has no backward pass, so that is here. The numbers differ by rounding alone.

One vector goes to native.c, where that is compiled: it reads what memory gives, 40 GB/s where the following reads 25 (one AMD EPYC of 2021).
Where it is not, MKL takes it, and is given the matrix as a batch of several, the blocks of its rows: it then reads 25 to 30 GB/s on one core
and as much as the memory has on two, as fast as a sum. As one matrix it is 11 to 16, on one core whatever there are, and oneDNN's 14 to 20 on
one core, after 40 us in which it reads nothing (one AMD EPYC of 2023).

A wide matrix it reads a fifth to two fifths faster still if that lies column by column and is given as a batch of parts of the columns, whose
products are added up. With many vectors MKL is as fast in columns, oneDNN is not: so they lie so where all products are MKL's.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lawf_repl.engine import native

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]  # x (..., I), W (O, I), a bias (O) or None: (..., O)
BLOCKS = 2  # for each thread at least: with one block in all MKL reads half as fast
WIDE, LARGE = 2, 2**20  # rows for each column, and numbers in all, from which on columns are read faster
CLOSE = 1e-4  # largest error of what is tried, beside sums of 64 products of numbers around 1


def by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W' + bias by oneDNN, without a gradient. `weight` may lie row by row or column by column."""
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


def by_parts(x: torch.Tensor, weight: torch.Tensor, parts: int) -> torch.Tensor:
    """x W' (..., O) of one vector x (..., I) by MKL, which reads `parts` blocks of W, row by row, at once."""
    rows, width = weight.shape
    vector = x.reshape(1, width).t().expand(parts, width, 1)  # strides (0, 1, I): with others MKL takes it for a matrix, at a quarter of the speed
    return torch.bmm(weight.view(parts, rows // parts, width), vector).view(*x.shape[:-1], rows)


def by_column_parts(x: torch.Tensor, weight: torch.Tensor, parts: int) -> torch.Tensor:
    """x W' (..., O) of one vector x (..., I) by MKL, which reads `parts` blocks of W, column by column, at once."""
    rows, width = weight.shape
    return torch.bmm(x.reshape(parts, 1, width // parts), weight.t().view(parts, width // parts, rows)).sum(0).view(*x.shape[:-1], rows)


def of_vector(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product W x (O) with a vector x (I) as `product` makes it, for a weight that stays as it is; what can be decided before is decided here."""
    rows, width = weight.shape
    if native.at_hand() and native.can_read(weight):
        return native.product_of_vector(weight)
    if parts := _column_parts(weight):
        columns, shape = weight.t().view(parts, width // parts, rows), (parts, 1, width // parts)
        return lambda x: torch.bmm(x.view(shape), columns).sum(0)[0]
    parts = _parts(weight)
    if not parts:
        return lambda x: product(x[None], weight, None)[0]
    blocks, strides = weight.view(parts, rows // parts, width), (0, 1, width)  # strides as in `by_parts`
    return lambda x: torch.bmm(blocks, x.as_strided((parts, width, 1), strides)).view(rows)


def _parts(weight: torch.Tensor) -> int:
    """Into how many blocks of rows a matrix is cut for its product with a vector; 0 where that is oneDNN's."""
    return parts_of(len(weight), torch.get_num_threads()) if weight.is_contiguous() and torch.backends.mkl.is_available() else 0


def _column_parts(weight: torch.Tensor) -> int:
    """Into how many blocks of columns a matrix is cut for its product with a vector; 0 where it is not."""
    rows, width = weight.shape
    return parts_of(width, torch.get_num_threads()) if in_columns(rows, width) and weight.t().is_contiguous() else 0


def in_columns(rows: int, width: int) -> bool:
    """Whether a matrix of that shape is best laid out column by column: its products are MKL's then, whatever else works here."""
    return rows >= WIDE * width and rows * width >= LARGE and torch.backends.mkl.is_available() and not onednn_is_faster() \
        and not native.at_hand()


@lru_cache
def parts_of(rows: int, threads: int) -> int:
    """Into how many equal parts to cut rows, or columns, for so many threads; 0 where they cannot be cut into a few."""
    least = BLOCKS * threads
    return next((parts for parts in range(least, 4 * least + 1) if rows % parts == 0), 0)


@cache
def onednn_works() -> bool:
    """Whether this build of torch has that product, on a processor it is made for, and it says what torch's own does."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in ((3, 64), (32, 64), (32,)))
    try:
        with torch.no_grad():
            return all(torch.allclose(by_onednn(x, lying, bias), functional.linear(x, lying, bias), atol=CLOSE)
                       for lying in (weight, weight.t().contiguous().t()))
    except (RuntimeError, AttributeError, TypeError):  # a build without it, or one where it takes something else
        return False


def onednn_is_faster() -> bool:
    """Whether this processor has what MKL makes no use of and oneDNN does."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class FrozenLinear(nn.Linear):
    """A frozen linear layer whose products are `product`s."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y (..., O) of x (..., I)."""
        return product(input, self.weight, self.bias)


def take_over(model: Any) -> None:
    """Make the plain float32 linear layers of a model `FrozenLinear` ones, in place."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.__class__ = FrozenLinear


def product_of(module: Any) -> Product:
    """How a linear layer's products are made: torch's own way, unless it is an `FrozenLinear`."""
    return product if isinstance(module, FrozenLinear) else functional.linear


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W' + bias (..., O) of x (..., I), with a gradient for x; torch's own where oneDNN is no faster or something is to be learned here."""
    y: torch.Tensor
    learns = torch.is_grad_enabled()
    if x.dtype != torch.float32 or weight.device.type != "cpu" or not x.numel() or torch.is_autocast_enabled("cpu") \
            or (learns and (weight.requires_grad or (bias is not None and bias.requires_grad))) \
            or not _is_dense(weight):
        return functional.linear(x, weight, bias)
    if learns and x.requires_grad:
        y = _Frozen.apply(x, weight, bias) if onednn_is_faster() else functional.linear(x, weight, bias)  # type: ignore[no-untyped-call]
        return y
    if native.can_multiply(x, weight, bias):
        return native.product(x, weight, bias)
    if x.numel() == x.shape[-1] and ((columns := _column_parts(weight)) or (parts := _parts(weight))):
        y = by_column_parts(x, weight, columns) if columns else by_parts(x, weight, parts)
        return y if bias is None else y.add_(bias)
    return by_onednn(x.contiguous(), weight, bias) if onednn_is_faster() else functional.linear(x, weight, bias)


def _is_dense(weight: torch.Tensor) -> bool:
    """Whether a matrix lies row by row or column by column without gaps: for another oneDNN has a reference product alone, 1000 times slower."""
    return weight.is_contiguous() or weight.stride() == (1, len(weight))


class _Frozen(torch.autograd.Function):
    """y (..., O) of x (..., I) with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return by_onednn(x.contiguous(), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return by_onednn(slopes[0].contiguous(), ctx.saved_tensors[0].t(), None), None, None
