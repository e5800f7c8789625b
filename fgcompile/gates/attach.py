"""Putting gates on a model: the container, and hooks where the specs say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import nn

from fgcompile.errors import GateError
from fgcompile.gates.access import container_of, find_container
from fgcompile.gates.config import GateConfig
from fgcompile.gates.container import ATTRIBUTE, GateContainer, Site
from fgcompile.gates.hooks import (
    BeginHook,
    GateHook,
    InputHook,
    OutputHook,
    ParameterHook,
    PenaltyHook,
    ResetHook,
    WatchHook,
)
from fgcompile.gates.kurtosis import KurtosisObjective, Watched
from fgcompile.gates.spec import GateSite, GateSpec

__all__ = ["adopt", "attach", "container_of", "find_container", "make_container"]

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
    if container.config.kurtosis:
        # Before the gates, so that it sees the inputs as they come.
        hooks = [*_watch(model, container), *hooks]
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


def _watch(
    model: nn.Module, container: GateContainer
) -> list[tuple[nn.Module, GateHook]]:
    """The weighted objective, and hooks that show it what every matrix reads."""
    each, specs = container.each(), container.specs
    pairs: list[Watched] = []
    hooks: list[tuple[nn.Module, GateHook]] = []
    for number in range(0, len(each), 2):
        rows, columns = each[number : number + 2]
        (site, *_), weight = specs[number + 1].sites, specs[number].weight
        if site.where != "input" or not weight:
            raise GateError(
                f"cannot weight {rows.name} by kurtosis: its input cannot be watched\n"
                "  Set kurtosis=False for this model."
            )
        pair = Watched(
            model.get_parameter(weight), specs[number].rows_first, rows, columns
        )
        pairs.append(pair)
        hooks.append((_submodule(model, site.module, site), WatchHook(pair)))
    config = container.config
    container.objective = KurtosisObjective(
        config.target_sparsity, config.weight, config.begin, pairs
    )
    return hooks


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
    if isinstance(hook, (InputHook, WatchHook)):
        module.register_forward_pre_hook(hook, with_kwargs=True)
    elif isinstance(hook, OutputHook):
        module.register_forward_hook(hook)
    elif isinstance(hook, PenaltyHook):
        module.register_forward_hook(hook, with_kwargs=True)
    elif isinstance(hook, (BeginHook, ParameterHook)):
        module.register_forward_pre_hook(hook)
    if isinstance(hook, (InputHook, ParameterHook)):
        module.register_forward_hook(ResetHook(hook), always_call=True)
