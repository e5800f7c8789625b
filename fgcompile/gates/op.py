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
    grad_z = _sum_but(grad * x, ctx.dim, z.dtype) if ctx.needs_input_grad[1] else None
    return grad_x, grad_z, None


gate.register_autograd(_backward, setup_context=_save)


def _along(z: Tensor, x: Tensor, dim: int) -> Tensor:
    shape = [1] * x.dim()
    shape[dim] = -1
    return z.to(x.dtype).view(shape)


def _sum_but(product: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    kept = dim % product.dim()
    others = [other for other in range(product.dim()) if other != kept]
    # An empty list would mean "all dims" to sum.
    return product.sum(others, dtype=dtype) if others else product.to(dtype)
