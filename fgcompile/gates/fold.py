"""Multiplying gates into weights, so that the plain model equals the gated one.

Which dim of which parameter takes a factor is not looked up by class: the candidates
are tried on a random input, and the one that computes the same is taken. So a linear
layer that stores its weight transposed, or a norm of any origin, folds as well, and a
layer that cannot take the factor is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fgcompile.capture.state import eval_mode
from fgcompile.errors import GateError
from fgcompile.gates.container import GateContainer, Site
from fgcompile.gates.hooks import GateHook
from fgcompile.gates.spec import GateSite


@dataclass(frozen=True)
class Fold:
    """One factor of one parameter: `module.name *= factors` along `dim`."""

    module: nn.Module
    name: str
    dim: int
    factors: Tensor

    def folded(self, tensor: Tensor) -> Tensor:
        """`tensor` with the factors multiplied in."""
        shape = [1] * tensor.dim()
        shape[self.dim] = -1
        return tensor * self.factors.view(shape).to(tensor.dtype)


@torch.no_grad()
def fold_gates(model: nn.Module, container: GateContainer) -> None:
    """Multiplies every eval factor into a parameter of the module it acts on.

    Raises:
        GateError: If a site has no parameter that takes its factors exactly. Nothing
            was changed then.
    """
    for fold in plan_folds(model, container):
        parameter = fold.module._parameters[fold.name]
        assert parameter is not None
        parameter.copy_(fold.folded(parameter))


@torch.no_grad()
def plan_folds(model: nn.Module, container: GateContainer) -> list[Fold]:
    """What `fold_gates` multiplies; nothing is changed.

    Raises:
        GateError: If a site has no parameter that takes its factors exactly.
    """
    folds: list[Fold] = []
    described = [site for spec in container.specs for site in spec.sites]
    for site, placed in zip(described, container.sites, strict=True):
        assert isinstance(placed, Site)
        folds += _folds_of(model, site, placed.expand(placed.gate.eval_value()))
    return folds


def _folds_of(model: nn.Module, site: GateSite, factors: Tensor) -> list[Fold]:
    module = model.get_submodule(site.module)
    _refuse_hooked(module, site)
    if site.where == "parameter":
        path, _, name = site.name.rpartition(".")
        _refuse_hooked(module.get_submodule(path), site)
        folds = [Fold(module.get_submodule(path), name, site.dim, factors)]
    else:
        folds = _trial(module, site, factors)
    for fold in folds:
        _refuse_shared(model, site, fold)
    return folds


def _refuse_hooked(module: nn.Module, site: GateSite) -> None:
    """A hook may add to what the weights compute, or put others in their place."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for hook in hooks.values():
            if not isinstance(hook, GateHook):
                raise GateError(
                    f"cannot fold the gate at {site}: {_name(hook)} acts on its module "
                    "too\n  Take it off first: fgcompile.methods has merge_low_rank, "
                    "bake_pst, remove_s2ft and remove_distillation for its own."
                )


def _name(hook: Any) -> str:
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"the hook {named.__module__}.{named.__qualname__}"


def _refuse_shared(model: nn.Module, site: GateSite, fold: Fold) -> None:
    parameter = fold.module._parameters[fold.name]
    named = model.named_parameters(remove_duplicate=False)
    readers = [name for name, other in named if other is parameter]
    owners = {id(model.get_submodule(name.rpartition(".")[0])) for name in readers}
    if len(owners) > 1:
        raise GateError(
            f"cannot fold the gate at {site}: its weight is shared by "
            f"{', '.join(readers)}\n"
            "  Lower the model instead, or untie the weight first."
        )


def _trial(module: nn.Module, site: GateSite, factors: Tensor) -> list[Fold]:
    """The first candidate that computes what the gated module computes."""
    probe = _probe(module, site, len(factors))
    if probe is None:
        raise _refusal(site)
    # Factors of the trial: positive and distinct, so that no two dims look alike.
    generator = torch.Generator().manual_seed(0)
    trial = (torch.rand(len(factors), generator=generator) + 0.5).to(factors.device)
    with eval_mode(module):
        try:
            expected = _gated(module, probe, site, trial)
        except Exception:  # a module of any origin may not take the probe
            raise _refusal(site) from None
        for candidate in _candidates(module, site, trial):
            with _shown(candidate):
                got = module.forward(probe)
            if _same(got, expected):
                return [Fold(f.module, f.name, f.dim, factors) for f in candidate]
    raise _refusal(site)


def _refusal(site: GateSite) -> GateError:
    return GateError(
        f"cannot fold the gate at {site}: no parameter of that module takes its "
        "factors exactly\n  Lower the model instead; there the gate stays an operator."
    )


def _gated(module: nn.Module, probe: Tensor, site: GateSite, z: Tensor) -> Any:
    if site.where == "input":
        return module.forward(_along(probe, z, site.dim))
    return _along(module.forward(probe), z, site.dim)


def _along(x: Tensor, z: Tensor, dim: int) -> Tensor:
    shape = [1] * x.dim()
    shape[dim] = -1
    return x * z.view(shape).to(x.dtype)


def _candidates(
    module: nn.Module, site: GateSite, trial: Tensor
) -> Iterator[list[Fold]]:
    weight = module._parameters.get("weight")
    if weight is None:
        return
    dims = [dim for dim, size in enumerate(weight.shape) if size == len(trial)]
    bias = module._parameters.get("bias")
    scaled = [] if bias is None or site.where == "input" else [("bias", bias)]
    for dim in dims:
        more = [Fold(module, n, 0, trial) for n, b in scaled if len(b) == len(trial)]
        yield [Fold(module, "weight", dim, trial), *more]


@contextmanager
def _shown(folds: list[Fold]) -> Iterator[None]:
    """Folds that hold for the duration; the parameters themselves stay."""
    for fold in folds:
        parameter = fold.module._parameters[fold.name]
        assert parameter is not None
        vars(fold.module)[fold.name] = fold.folded(parameter)
    try:
        yield
    finally:
        for fold in folds:
            vars(fold.module).pop(fold.name, None)


def _probe(module: nn.Module, site: GateSite, size: int) -> Tensor | None:
    """A random input for `module`, or None where none can be made up."""
    weight = module._parameters.get("weight")
    first = next(iter(inspect.signature(module.forward).parameters), "")
    if weight is None or site.name not in ("0", first):
        return None
    shape = _probe_shape(module, weight, site, size)
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, nn.Embedding):
        return torch.arange(min(5, weight.shape[0]), device=weight.device)[None]
    return torch.randn(shape, generator=generator).to(weight)


def _probe_shape(
    module: nn.Module, weight: Tensor, site: GateSite, size: int
) -> tuple[int, ...]:
    if isinstance(module, nn.modules.conv._ConvNd):
        windows = zip(module.kernel_size, module.dilation, strict=True)
        extent = [d * (k - 1) + 2 for k, d in windows]
        return (2, module.in_channels, *extent)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return (2, size, *[3] * (-site.dim - 1))
    others = [extent for extent in weight.shape if extent != size]
    width = size if site.where == "input" or not others else others[0]
    return (2, 3, width)


def _same(got: Any, expected: Any) -> bool:
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return False
    scale = expected.abs().max().clamp_min(1e-12)
    tolerance = 1e-4 if got.dtype == torch.float32 else 2e-2
    return bool((got - expected).abs().max() <= tolerance * scale)
