"""Runs a model whose weights are on the disk, one module's worth at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.targets.verify import outputs_of

Source = Callable[[str], Tensor]
"""A parameter by its name in the model."""


@torch.no_grad()
def layerwise_outputs(
    model: nn.Module, source: Source, inputs: dict[str, Any]
) -> list[Tensor]:
    """Outputs of `model` with the weights of `source`.

    A module gets its own parameters when it is called and gives them back when it
    returns, so that memory holds one module's at a time.

    Args:
        model: With stand-ins for parameters; they are back in place afterwards.
        source: Called with names of parameters.
        inputs: By name.
    """
    handles = []
    for path, module in model.named_modules():
        if module._parameters:
            loan = _Loan(module, path, source)
            handles.append(module.register_forward_pre_hook(loan.take))
            handles.append(module.register_forward_hook(loan.give_back))
    try:
        return outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


class _Loan:
    """The real parameters of one module, while it runs."""

    def __init__(self, module: nn.Module, path: str, source: Source) -> None:
        self.prefix = f"{path}." if path else ""
        self.source = source
        self.standins = dict(module._parameters)

    def take(self, module: nn.Module, args: Any) -> None:
        for name, standin in self.standins.items():
            if standin is not None:
                real = self.source(self.prefix + name)
                module._parameters[name] = nn.Parameter(real, requires_grad=False)

    def give_back(self, module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(self.standins)
