"""Training a slice of a frozen matrix, with partial back-propagation.

The forward saves the selected part of the activation alone, and the backward makes the
gradient of the selected part of the weight alone; the gradient of the input uses the
whole weight, as always. Source: S2FT (arXiv 2412.06289), section 3.3.

The paper updates the slice in place. Here the update is a block of its own that starts
at zero, until it is fused: the same function and the same steps of Adam, but the base
weights stay as they are, which an adapter needs, and a checkpoint holds no stale ones.
Weight decay pulls towards the base weights rather than towards zero.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fgcompile.gates.gate import KeepsDtype
from fgcompile.gates.hooks import UpdateHook
from fgcompile.gates.matrices import Matrix
from fgcompile.methods.weight_hooks import MethodHook

Side = Literal["columns", "rows"]


class _AddColumns(torch.autograd.Function):
    """`y + x[..., :s] block^T`; saves `x[..., :s]` and not `x`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, block: Tensor) -> Tensor:
        # A copy: a view would keep all of x alive.
        selected = x[..., : block.shape[1]].to(y.dtype, copy=True).contiguous()
        ctx.save_for_backward(selected, block)
        ctx.inputs, ctx.dtype = x.shape[-1], x.dtype
        return y + selected @ block.to(y.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad, (selected, block) = grads[0], ctx.saved_tensors
        grad_x = grad_block = None
        if ctx.needs_input_grad[1]:
            part = (grad @ block.to(grad.dtype)).to(ctx.dtype)
            grad_x = nn.functional.pad(part, (0, ctx.inputs - block.shape[1]))
        if ctx.needs_input_grad[2]:
            grad_block = _flat(grad).T @ _flat(selected)
            grad_block = grad_block.to(block.dtype)
        return grad, grad_x, grad_block


class _AddRows(torch.autograd.Function):
    """`y`, with `x block^T` added to its first outputs."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, block: Tensor) -> Tensor:
        x = x.to(y.dtype)
        ctx.save_for_backward(x, block)
        added = y.clone()
        added[..., : len(block)] += x @ block.to(y.dtype).T
        return added

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad, (x, block) = grads[0], ctx.saved_tensors
        selected = grad[..., : len(block)]
        grad_x = grad_block = None
        if ctx.needs_input_grad[1]:
            grad_x = selected @ block.to(grad.dtype)
        if ctx.needs_input_grad[2]:
            grad_block = (_flat(selected).T @ _flat(x)).to(block.dtype)
        return grad, grad_x, grad_block


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class S2ftBlock(KeepsDtype):
    """The trained update of the first rows or columns of one matrix.

    Attributes:
        block: Float32, shape `[outputs size]` for columns, `[size inputs]` for rows.
        base: Indices that are trained, in the order of the base model, `[size]`.
    """

    base: Tensor

    def __init__(self, matrix: Matrix, side: Side, base: Tensor, device: Any) -> None:
        """An update that is zero; `base` are the base indices of what is in front."""
        super().__init__()
        self.matrix, self.side = matrix, side
        outputs, inputs = matrix.shape
        size = len(base)
        shape = (outputs, size) if side == "columns" else (size, inputs)
        self.block = nn.Parameter(torch.zeros(shape, device=device))
        self.register_buffer("base", base.to(device))

    @property
    def dim(self) -> int:
        """The dim of the parameter that is sliced."""
        side_is_rows = self.side == "rows"
        return self.matrix.rows if side_is_rows else self.matrix.columns

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """`y`, which the base matrix made of `x`, with the update added."""
        add = _AddColumns if self.side == "columns" else _AddRows
        result: Tensor = add.apply(y, x, self.block)
        return result

    def stored(self) -> Tensor:
        """The update in the layout of the parameter."""
        block = self.block.detach()
        return block if self.matrix.rows == 0 else block.T


class BlockHook(MethodHook, UpdateHook):
    """Adds an update to what a module returns; a forward hook with keywords."""

    method = "s2ft"

    def __init__(self, block: S2ftBlock) -> None:
        """Adds `block`."""
        self.block = block

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """The output with the update."""
        if self.hidden:
            return output
        x = (args or tuple(kwargs.values()))[0]
        return self.block(output, x)
