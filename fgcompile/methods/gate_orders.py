"""Gates go along when the units that they act on are reordered.

A gate holds its units in the order of the weights, and acts where it did. So all that
it knows of each unit is reordered as the units are, or an open unit would take the
place of a closed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgcompile.analysis.coupling import Analysis, Member
from fgcompile.errors import GateError
from fgcompile.gates.access import find_container, owner_of
from fgcompile.gates.container import GateContainer
from fgcompile.gates.gate import Gate
from fgcompile.gates.independent import ROW
from fgcompile.gates.kurtosis import KurtosisObjective
from fgcompile.gates.matrices import Matrix
from fgcompile.gates.spec import GateSpec

Moved = Mapping[tuple[str, int], Tensor]
"""By parameter and dim: what is at each index now, as indices before."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where the units of gates lie in the parameters, whatever their order.

    Attributes:
        groups: Members of each coupled group, by its name and size; none for a group
            whose units stay.
        matrices: By whose readers the units of other gates are found.
    """

    groups: dict[tuple[str, int], tuple[Member, ...]]
    matrices: tuple[Matrix, ...]


def places_of(
    analysis: Analysis, names: Iterable[str], matrices: Sequence[Matrix] = ()
) -> Places:
    """The places of all units, where the groups of these names will be reordered."""
    moving = {
        (member.parameter, member.dim)
        for name in names
        for member in analysis.by_name[name].members
    }
    groups = {
        (g.name, g.size): g.members
        if any((m.parameter, m.dim) in moving for m in g.members)
        else ()
        for g in analysis.groups
    }
    return Places(groups, tuple(matrices))


def gates_beside(model: nn.Module, owner: nn.Module) -> GateContainer | None:
    """The gates in `model`, whose names and paths must be those of `owner`.

    Raises:
        GateError: If they are those of another module.
    """
    container = find_container(model)
    if container is not None and owner_of(model, container) is not owner:
        raise GateError(
            "cannot reorder the units of gates that another module holds\n"
            "  Insert gates and S2FT into the same module."
        )
    return container


def gate_orders(
    container: GateContainer | None, places: Places, moved: Moved
) -> dict[Gate, Tensor]:
    """For each gate, its units in the order in which the weights have them now.

    Raises:
        GateError: If the units of a gate are not found, or do not move as a whole.
    """
    if container is None:
        return {}
    pairs = zip(container.specs, container.each(), strict=True)
    return {gate: _unit_order(spec, places, moved) for spec, gate in pairs}


def permute_gates(
    container: GateContainer | None, orders: Mapping[Gate, Tensor]
) -> None:
    """The units of all gates lie in the given orders."""
    if container is None:
        return
    for gate, order in orders.items():
        gate.permute(order)
    if isinstance(container.objective, KurtosisObjective):
        for pair in container.objective.pairs:
            if pair.mean is not None:
                pair.mean = pair.mean[orders[pair.columns].to(pair.mean.device)]


def _unit_order(spec: GateSpec, places: Places, moved: Moved) -> Tensor:
    order = torch.arange(spec.size)
    pairs = []
    for member in _members(spec, places):
        index = member.index
        inside = index >= 0
        there = moved.get((member.parameter, member.dim), torch.arange(len(index)))
        pairs.append((index[inside], index[there][inside]))
    for now, before in pairs:
        order[now] = before
    same = all(torch.equal(order[now], before) for now, before in pairs)
    if not same or not torch.equal(order.sort().values, torch.arange(spec.size)):
        raise GateError(
            f"cannot reorder the units of gate {spec.name}: they do not move as a "
            "whole\n  Take the gates off first: fgcompile.remove_gates(model)."
        )
    return order


def _members(spec: GateSpec, places: Places) -> Sequence[Member]:
    """The parameter dims along which the units of a gate lie."""
    if spec.weight:
        dim = 0 if spec.rows_first == (spec.kind == ROW) else 1
        return [Member(spec.weight, dim, torch.arange(spec.size))]
    if (spec.name, spec.size) in places.groups:
        return places.groups[spec.name, spec.size]
    # Gates of anyone else, which are named as they like.
    members = [
        Member(m.parameter, m.columns if site.where == "input" else m.rows, site.index)
        for site in spec.sites
        for m in places.matrices
        if site.where != "parameter" and (m.whole, m.reader) == (True, site.module)
    ]
    if not members:
        raise GateError(
            f"cannot tell which units gate {spec.name} acts on, to reorder them\n"
            "  Take the gates off first: fgcompile.remove_gates(model)."
        )
    return members
