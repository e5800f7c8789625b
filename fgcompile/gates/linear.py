"""Gates on the input of a linear layer, applied to the columns of its weight instead.

`(x * z) @ W.T` and `x @ (W * z).T` are the same product. The second spares training a
gated copy of the input and a pass over it, which cost more than all else that gates do:

- Where the weight is trained, its gradient is there anyway, and from its product with
  the weight the gates feel theirs.
- Where it is frozen, the gradient of the gated input is multiplied in place.

Graphs, which show where gates act, and eval keep the gate on the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgcompile.gates.op import gate, multiply_and_sum, multiply_and_sum_plainly

_LINEAR, _FORWARD = functional.linear, nn.Linear.forward
"""As torch has them: where someone put another in their place, inputs are gated."""


def costs_less_on_weight(module: nn.Module, x: Any, dim: int, size: int) -> bool:
    """Whether to gate the weight of `module`, and not dim `dim` of its input `x`.

    Only where the forward is that of `nn.Linear`, reads the parameter as it is and is
    the only one to read it, and the weight is smaller than its input. Under
    torch.compile the compiler fuses products.

    Args:
        module: What is called.
        x: Its argument.
        dim: Dim of `x` that is gated.
        size: Factors that the gate has there.
    """
    own = type(module) is nn.Linear and not vars(module).keys() & {"forward", "weight"}
    if not own or not module.training or torch.compiler.is_compiling() or _watched():
        return False
    weight = module._parameters.get("weight")
    if type(weight) is not nn.Parameter or type(x) is not Tensor or x.is_nested:
        return False
    return (
        dim in (-1, x.dim() - 1)
        and x.shape[-1] == size
        and weight.dim() == 2
        and weight.shape[1] == size
        and x.device == weight.device
        and x.numel() > weight.numel()
    )


def _watched() -> bool:
    """Whether linear layers are not torch's, or calls of functions are followed."""
    changed = nn.Linear.forward is not _FORWARD or functional.linear is not _LINEAR
    followed = torch._C._len_torch_function_stack() > 0
    return changed or followed or _transformed()


def _transformed() -> bool:
    """Whether a transform of torch.func is at work, such as vmap."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def gated_weight(weight: Tensor, z: Tensor) -> Any:
    """What a linear layer can use in place of `weight`, shape `[out in]`.

    Args:
        weight: The weight, trained or frozen.
        z: Factors of its columns, shape `[in]`.
    """
    z = z.to(weight.device)  # a model may be spread over devices
    return gate(weight, z, -1) if weight.requires_grad else _Frozen(weight, z)


class _Frozen:
    """A frozen weight and its gates; `functional.linear` takes it as a weight."""

    def __init__(self, weight: Tensor, z: Tensor) -> None:
        self.weight, self.z = weight, z

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The product of a linear layer, which calls nothing else."""
        if function is not _LINEAR or kwargs or not isinstance(args[1], cls):
            return NotImplemented
        x, frozen, *bias = args
        return _FrozenLinear.apply(x, frozen.z, frozen.weight, *(bias or [None]))


class _FrozenLinear(torch.autograd.Function):
    """`functional.linear(x, weight * z, bias)` whose weight gets no gradient."""

    @staticmethod
    def forward(x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight * z.to(weight.dtype), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, z, weight, _ = inputs
        ctx.save_for_backward(x, z, weight)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
        x, z, weight = ctx.saved_tensors
        grad_x = slope = grad_bias = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            # Under autocast the product is in its dtype, as its forward was.
            ungated = (grad @ weight.to(grad.dtype)).to(x.dtype)
            # The result may be differentiated again, or be one of many at once.
            if torch.is_grad_enabled() or _is_batched(grad):
                grad_x, slope = multiply_and_sum_plainly(ungated, x, z, -1)
            else:
                grad_x, slope = multiply_and_sum(ungated, x, z, overwrite=True)
            slope = slope.to(z.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad.sum(list(range(grad.dim() - 1)))
        return grad_x, slope, None, grad_bias


def _is_batched(grad: Tensor) -> bool:
    """Whether it is many gradients, as vmap and `is_grads_batched` make them."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)
