"""Finding the gates of a model, their parameters and their penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.container import GateContainer
from fgcompile.gates.gate import Gate


def find_container(model: nn.Module) -> GateContainer | None:
    """The gates in `model` or in what it wraps; None if there are none."""
    return next((m for m in model.modules() if isinstance(m, GateContainer)), None)


def owner_of(model: nn.Module, part: nn.Module) -> nn.Module:
    """The module that `part` was put on, from which names and paths start.

    It is `model`, or what `model` wraps.
    """
    return next(
        module
        for module in model.modules()
        if any(child is part for child in module._modules.values())
    )


def container_of(model: nn.Module) -> GateContainer:
    """The gates in `model` or in what it wraps.

    Raises:
        GateError: If there are none.
    """
    container = find_container(model)
    if container is None:
        raise GateError(
            f"{type(model).__name__} has no gates\n"
            "  Insert them with fgcompile.insert_gates(model)."
        )
    return container


def gates(model: nn.Module) -> dict[str, Gate]:
    """The gates of `model` by name, in the order of their specs.

    Raises:
        GateError: If there are none.
    """
    container = container_of(model)
    container.settle()
    return {gate.name: gate for gate in container.each()}


def penalty(model: nn.Module) -> Tensor:
    """The sparsity term, a float32 scalar with gradients to every gate.

    For loops whose model returns no loss; where it does, the term is in it already.

    Raises:
        GateError: If `model` has no gates.
    """
    return container_of(model).penalty()


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of the gates.

    Raises:
        GateError: If `model` has no gates.
    """
    return [p for p in container_of(model).parameters() if p.requires_grad]


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    gate_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Two groups for any optimizer: the weights, and the gates without weight decay.

    Args:
        model: A gated model.
        lr: Learning rate of the weights.
        weight_decay: Of the weights.
        gate_lr: Learning rate of the gates; None is that of their config, or `lr`.

    Raises:
        GateError: If `model` has no gates.
    """
    own = gate_parameters(model)
    known = {id(parameter) for parameter in own}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    own_lr = container_of(model).config.lr
    given = (rate for rate in (gate_lr, own_lr) if rate is not None)
    gate_lr = next(given, lr)
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": own, "lr": gate_lr, "weight_decay": 0.0},
    ]
