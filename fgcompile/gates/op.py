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
    # Only the plain form can be differentiated again.
    both = multiply_and_sum_plainly if torch.is_grad_enabled() else gate_backward
    if all(ctx.needs_input_grad[:2]):
        grad_x, slope = both(grad, x, z, ctx.dim)
        return grad_x, slope.to(z.dtype), None
    if ctx.needs_input_grad[0]:
        return grad * _along(z, grad, ctx.dim), None, None
    return None, _summed(grad, x, ctx.dim).to(z.dtype), None


gate.register_autograd(_backward, setup_context=_save)

BLOCK = 64
"""Rows that are multiplied and summed at once, so that they stay in the cache."""


@torch.library.custom_op("fgcompile::gate_backward", mutates_args=())
def gate_backward(
    grad: Tensor, x: Tensor, z: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """What `x` feels, `grad * z`, and what `z` feels: the sum of `grad * x`.

    The plain form writes a product as large as `x` and reads it again, which made up
    most of what gates cost in training on a CPU; an operator of its own stays whole
    under torch.compile.

    Returns:
        Like `grad`; and float32 (float64 for float64), shape `[x.shape[dim]]`.
    """
    if dim % x.dim() == x.dim() - 1:
        return multiply_and_sum(grad, x, z)
    return multiply_and_sum_plainly(grad, x, z, dim)


@gate_backward.register_fake
def _(grad: Tensor, x: Tensor, z: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    slope = x.new_empty(x.shape[dim], dtype=_sum_dtype(x))
    return torch.empty_like(grad, memory_format=torch.contiguous_format), slope


def multiply_and_sum(
    grad: Tensor, x: Tensor, z: Tensor, overwrite: bool = False
) -> tuple[Tensor, Tensor]:
    """`grad * z`, and the sum of `grad * x` over all dims but the last, in blocks.

    Args:
        grad: Like `x`. No result can be differentiated.
        x: Value of any shape.
        z: Factors of its last dim.
        overwrite: Whether the product may take the place of `grad`.

    Returns:
        Like `grad`; and float32 (float64 for float64), shape `[x.shape[-1]]`.
    """
    if x.device.type != "cpu" or x.dtype not in _EXACT:
        return multiply_and_sum_plainly(grad, x, z, -1)
    size = x.shape[-1]
    if not (overwrite and grad.is_contiguous()):
        grad_x = torch.empty_like(grad, memory_format=torch.contiguous_format)
    else:
        grad_x = grad
    factors = z.to(x.dtype)
    rows = [value.reshape(-1, size).split(BLOCK) for value in (grad, x, grad_x)]
    total = x.new_zeros(min(BLOCK, x.numel() // max(size, 1)), size)
    for one, other, out in zip(*rows, strict=True):
        total[: len(one)].addcmul_(one, other)
        torch.mul(one, factors, out=out)
    return grad_x, total.sum(0)


_EXACT = (torch.float32, torch.float64)
"""Dtypes in which running sums lose nothing that matters."""


def _along(z: Tensor, x: Tensor, dim: int) -> Tensor:
    shape = [1] * x.dim()
    shape[dim] = -1
    return z.to(x.dtype).view(shape)


def multiply_and_sum_plainly(
    grad: Tensor, x: Tensor, z: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """The same for any `dim`; can be differentiated."""
    scaled = (grad * _along(z, grad, dim)).contiguous()
    return scaled, _summed(grad, x, dim)


def _summed(grad: Tensor, x: Tensor, dim: int) -> Tensor:
    product, dtype = grad * x, _sum_dtype(x)
    kept = dim % product.dim()
    others = [other for other in range(product.dim()) if other != kept]
    # An empty list would mean "all dims" to sum.
    return product.sum(others, dtype=dtype) if others else product.to(dtype)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
