"""The operator `fgcompile::gate`: one visible node wherever a gate acts.

A gate may have fewer units than the dim it multiplies (8 heads, 512 columns). It is
expanded before the operator by `index_select`, so the operator is always a plain
product along one dim, and a graph shows which index belongs to which unit as data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("fgcompile::gate", mutates_args=())
def gate(x: Tensor, z: Tensor, dim: int) -> Tensor:
    """`x * z`, with `z[k]` multiplying index `k` of dim `dim` of `x`.

    Args:
        x: Value of any shape.
        z: Factors, shape `[x.shape[dim]]`, of any floating dtype.
        dim: Dim of `x`; negative counts from the end.

    Returns:
        A new tensor of the shape and dtype of `x`: under autocast a bfloat16 `x` and a
        float32 `z` give bfloat16, so that a gate never widens the values after it.
    """
    return x * _along(z, x, dim)


@gate.register_fake
def _(x: Tensor, z: Tensor, dim: int) -> Tensor:
    torch._check(z.dim() == 1, lambda: f"z must be 1-D, got {z.dim()} dims")
    torch._check(
        x.shape[dim] == z.shape[0],
        lambda: f"gate has {z.shape[0]} factors, but dim {dim} of x is {x.shape[dim]}",
    )
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, z, ctx.dim = inputs
    ctx.save_for_backward(x, z)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, z = ctx.saved_tensors
    grad_x = gate(grad, z, ctx.dim) if ctx.needs_input_grad[0] else None
    grad_z = None
    if ctx.needs_input_grad[1]:
        # Only the plain form can be differentiated again.
        summed = _summed if torch.is_grad_enabled() else gate_slope
        grad_z = summed(grad, x, ctx.dim).to(z.dtype)
    return grad_x, grad_z, None


gate.register_autograd(_backward, setup_context=_save)


def _along(z: Tensor, x: Tensor, dim: int) -> Tensor:
    shape = [1] * x.dim()
    shape[dim] = -1
    return z.to(x.dtype).view(shape)


BLOCK = 64
"""Rows that are multiplied and summed at once, so that they stay in the cache."""


@torch.library.custom_op("fgcompile::gate_slope", mutates_args=())
def gate_slope(grad: Tensor, x: Tensor, dim: int) -> Tensor:
    """Sum of `grad * x` over all dims but `dim`: what the factors of a gate feel.

    The plain form writes a product as large as `x` and reads it again, which made up
    most of what gates cost in training on a CPU; an operator of its own stays whole
    under torch.compile.

    Returns:
        Float32, or float64 for float64, shape `[x.shape[dim]]`.
    """
    last = dim % x.dim() == x.dim() - 1
    if not last or x.device.type != "cpu" or x.dtype not in _EXACT:
        return _summed(grad, x, dim)
    size = x.shape[-1]
    rows = [value.reshape(-1, size).split(BLOCK) for value in (grad, x)]
    total = x.new_zeros(min(BLOCK, x.numel() // max(size, 1)), size)
    for one, other in zip(*rows, strict=True):
        total[: len(one)].addcmul_(one, other)
    return total.sum(0)


@gate_slope.register_fake
def _(grad: Tensor, x: Tensor, dim: int) -> Tensor:
    return x.new_empty(x.shape[dim], dtype=_sum_dtype(x))


_EXACT = (torch.float32, torch.float64)
"""Dtypes in which running sums lose nothing that matters."""


def _summed(grad: Tensor, x: Tensor, dim: int) -> Tensor:
    product, dtype = grad * x, _sum_dtype(x)
    kept = dim % product.dim()
    others = [other for other in range(product.dim()) if other != kept]
    # An empty list would mean "all dims" to sum.
    return product.sum(others, dtype=dtype) if others else product.to(dtype)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
