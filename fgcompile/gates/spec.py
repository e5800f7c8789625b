"""What the analysis hands to the gates: where one gate acts and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fgcompile.errors import GateError


@dataclass(frozen=True)
class GateSite:
    """One place where a gate multiplies a value.

    Attributes:
        module: Path of the submodule in the eager model, "" for the root.
        where: Whether the value is an argument, a result or a parameter.
        name: Position ("0") or keyword of the argument; position or key of the
            result; path of the parameter, relative to `module` (the module whose
            forward reads it).
        dim: Dim of that tensor; counted from the end for arguments and results.
        index: Unit of the gate for each index of the dim, int64, shape
            `[size of that dim]`; -1 is not gated (factor 1).
        node: Name of the node in the captured graph.
    """

    module: str
    where: Literal["input", "output", "parameter"]
    name: str
    dim: int
    index: Tensor
    node: str = ""

    def __str__(self) -> str:
        owner = self.module or "the model"
        return f"{self.where} {self.name} of {owner}, dim {self.dim}"


@dataclass(frozen=True)
class GateSpec:
    """One coupled group that gets a gate.

    Attributes:
        name: Name of the group, unique in the model.
        kind: `mlp`, `head`, `qk`, ...
        size: Units of the group.
        sites: Where its gate acts; closing a unit at all of them removes it.
        parameters: Parameters [count] that vanish when one unit is removed and the
            others stay, float, shape `[size]`.
        macs: The same in MACs per token or example.
        weight: Path of the one weight whose rows or columns these are, for gates that
            are not coupled; "" for others.
        rows_first: Whether dim 0 of that weight makes the outputs.
    """

    name: str
    kind: str
    size: int
    sites: tuple[GateSite, ...]
    parameters: Tensor
    macs: Tensor
    weight: str = ""
    rows_first: bool = True


def check_spec(spec: GateSpec) -> None:
    """Raises where a spec contradicts itself.

    Raises:
        GateError: If a cost or an index has the wrong shape, or an index points
            outside the gate.
    """
    for what, cost in (("parameters", spec.parameters), ("macs", spec.macs)):
        if cost.shape != (spec.size,):
            raise GateError(
                f"gate {spec.name}: {what} has shape {list(cost.shape)}, "
                f"expected [{spec.size}]"
            )
    if not spec.sites:
        raise GateError(f"gate {spec.name}: no site, so it would gate nothing")
    for site in spec.sites:
        _check_index(spec, site)


def _check_index(spec: GateSpec, site: GateSite) -> None:
    if site.index.dim() != 1 or site.index.dtype != torch.int64:
        raise GateError(
            f"gate {spec.name}: index of {site} must be 1-D int64, "
            f"got {site.index.dtype} of shape {list(site.index.shape)}"
        )
    low, high = int(site.index.min()), int(site.index.max())
    if low < -1 or high >= spec.size:
        raise GateError(
            f"gate {spec.name}: index of {site} spans {low} to {high}, "
            f"but the gate has units 0 to {spec.size - 1}"
        )
