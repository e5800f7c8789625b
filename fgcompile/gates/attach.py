"""Putting gates on a model, finding them, and taking them off again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates.config import GateConfig
from fgcompile.gates.container import ATTRIBUTE, GateContainer, Site
from fgcompile.gates.fold import fold_gates
from fgcompile.gates.gate import Gate
from fgcompile.gates.hooks import (
    BeginHook,
    GateHook,
    InputHook,
    OutputHook,
    ParameterHook,
    ParameterResetHook,
    PenaltyHook,
)
from fgcompile.gates.spec import GateSite, GateSpec

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def attach(
    model: ModuleT,
    specs: Sequence[GateSpec],
    config: GateConfig | None = None,
    *,
    model_macs: float | None = None,
) -> ModuleT:
    """Gates `model` in place; its class and forward signature stay.

    Args:
        model: Any module.
        specs: The coupled groups to gate, in the order that `gates` will have.
        config: How the gates are trained.
        model_macs: MACs of the whole model per token or example, for a budget on MACs
            with `of="model"`; None counts the gated ones only.

    Returns:
        The same object.

    Raises:
        GateError: If it has gates already, or a spec does not fit it. The model is
            unchanged then.
    """
    container = make_container(model, specs, config, model_macs=model_macs)
    hooks = list(_site_hooks(model, container))
    adopt(model, container)
    for module, hook in hooks:
        _register(module, hook)
    return model


def make_container(
    model: nn.Module,
    specs: Sequence[GateSpec],
    config: GateConfig | None = None,
    *,
    model_macs: float | None = None,
) -> GateContainer:
    """Gates for `model` that do not act yet; the arguments are those of `attach`."""
    if find_container(model) is not None:
        raise GateError(
            f"{type(model).__name__} has gates already\n"
            "  Use fgcompile.gates(model), or take them off with remove_gates(model)."
        )
    gated_macs = sum(float(spec.macs.sum()) for spec in specs)
    totals = {
        "params": float(sum(p.numel() for p in model.parameters())),
        "macs": gated_macs if model_macs is None else model_macs,
    }
    return GateContainer(specs, config or GateConfig(), totals)


def adopt(model: nn.Module, container: GateContainer) -> None:
    """Makes `container` part of `model`, and has it told about every forward."""
    first = next(model.parameters(), None)
    if first is not None:
        container.to(first.device)
    container.train(model.training)
    setattr(model, ATTRIBUTE, container)
    _register(model, BeginHook(container))
    _register(model, PenaltyHook(container, model))


def find_container(model: nn.Module) -> GateContainer | None:
    """The gates in `model` or in what it wraps; None if there are none."""
    return next((m for m in model.modules() if isinstance(m, GateContainer)), None)


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
    gate_lr = gate_lr or container_of(model).config.lr or lr
    return [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": own, "lr": gate_lr, "weight_decay": 0.0},
    ]


def remove_gates(model: ModuleT, fold: bool = False) -> ModuleT:
    """Takes every trace of the gates off `model`, in place.

    Args:
        model: A gated model.
        fold: Whether to multiply the eval factors into the weights first, so that
            the plain model computes what the gated one does in eval.

    Returns:
        The same object.

    Raises:
        GateError: If there are no gates, or a factor cannot be folded exactly. The
            model is unchanged then.
    """
    container = container_of(model)
    container.settle()
    if fold:
        fold_gates(model, container)
    for module in model.modules():
        _unregister(module)
        for name in [n for n, m in module._modules.items() if m is container]:
            del module._modules[name]
    return model


def _site_hooks(
    model: nn.Module, container: GateContainer
) -> Iterable[tuple[nn.Module, GateHook]]:
    """Every hook that the specs ask for, and the module it belongs to."""
    shown = defaultdict(list)
    described = [site for spec in container.specs for site in spec.sites]
    for site, placed in zip(described, container.sites, strict=True):
        assert isinstance(placed, Site)
        module = _submodule(model, site.module, site)
        if site.where == "input":
            yield module, InputHook(module, site.name, placed)
        elif site.where == "output":
            yield module, OutputHook(site.name, placed)
        else:
            shown[module].append((*_parameter(module, site), placed))
    for module, sites in shown.items():
        yield module, ParameterHook(sites)


def _submodule(model: nn.Module, path: str, site: GateSite) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise GateError(f"cannot gate {site}: no module {path!r}") from None


def _parameter(module: nn.Module, site: GateSite) -> tuple[nn.Module, str]:
    path, _, name = site.name.rpartition(".")
    owner = _submodule(module, path, site)
    parameter = owner._parameters.get(name)
    if parameter is None:
        raise GateError(f"cannot gate {site}: no parameter {site.name!r}")
    if parameter.shape[site.dim] != len(site.index):
        raise GateError(
            f"cannot gate {site}: it has shape {list(parameter.shape)}, "
            f"but the gate covers {len(site.index)} indices"
        )
    return owner, name


def _register(module: nn.Module, hook: GateHook) -> None:
    if isinstance(hook, InputHook):
        module.register_forward_pre_hook(hook, with_kwargs=True)
    elif isinstance(hook, OutputHook):
        module.register_forward_hook(hook)
    elif isinstance(hook, PenaltyHook):
        module.register_forward_hook(hook, with_kwargs=True)
    elif isinstance(hook, BeginHook):
        module.register_forward_pre_hook(hook)
    elif isinstance(hook, ParameterHook):
        module.register_forward_pre_hook(hook)
        module.register_forward_hook(ParameterResetHook(hook), always_call=True)


def _unregister(module: nn.Module) -> None:
    own = {
        key
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for key, hook in hooks.items()
        if isinstance(hook, GateHook)
    }
    for kept in (
        module._forward_pre_hooks,
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ):
        for key in own & kept.keys():
            del kept[key]
