"""Coupled groups: which indices of which parameters shrink together.

A group is a set of units that are alike: coupled classes with equally many members in
each parameter dim. Row 0 of `up` and column 0 of `down` are one unit; the 3072 such
pairs are one group of 3072 units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgcompile.analysis.classes import Classes, classes_of, unit_signatures
from fgcompile.analysis.cost import Costs, costs_of, unit_costs
from fgcompile.analysis.flow import trace_planes
from fgcompile.analysis.kinds import GroupKind, Roles, kinds_of, roles_of
from fgcompile.analysis.naming import distinct, group_name
from fgcompile.analysis.steps import Align, Flow, Reason
from fgcompile.errors import CouplingError
from fgcompile.program import Program
from fgcompile.units import BoolArray, UnitIds


@dataclass(frozen=True, eq=False)
class Member:
    """A dim of a parameter, and the unit of a group at each of its indices.

    `index` is int64, -1 where the index is not in the group.
    """

    parameter: str
    dim: int
    index: Tensor


@dataclass(frozen=True, eq=False)
class CoupledGroup:
    """Units that are alike, and what they are made of.

    Attributes:
        name: Unique in its model; the shared module of the members, and the kind.
        kind: `mlp`, `head`, `qk`, ...
        size: Number of units.
        members: Parameter dims with units of this group. A head has as members what
            it owns: its rows of the query, key and value, its columns of the output.
        reasons: Why the units may not shrink; empty if they may.
        parameters: Parameters [count] that vanish if one unit alone goes, `[size]`.
        macs: The same in MACs of one example, `[size]`.
        classes: Coupled class of each unit, `[size]`.
    """

    name: str
    kind: GroupKind
    size: int
    members: tuple[Member, ...]
    reasons: tuple[Reason, ...]
    parameters: Tensor
    macs: Tensor
    classes: UnitIds = field(repr=False)

    @property
    def pinned(self) -> Reason | None:
        """Why the units may not shrink, None if they may.

        Of several reasons, one that is not "an output of the model" comes first.
        """
        inner = [reason for reason in self.reasons if reason.node.op != "output"]
        return next(iter([*inner, *self.reasons]), None)


@dataclass(frozen=True, eq=False)
class Analysis:
    """The coupled groups of a program, ordered by depth.

    Attributes:
        program: What was analysed.
        flow: Its steps over planes.
        classes: Coupled classes, from which the groups are made.
        roles: What every unit takes part in.
        costs: Contractions and parameters, ready to be counted.
        groups: All groups in the order in which the program uses them.
    """

    program: Program = field(repr=False)
    flow: Flow = field(repr=False)
    classes: Classes = field(repr=False)
    roles: Roles = field(repr=False)
    costs: Costs = field(repr=False)
    groups: tuple[CoupledGroup, ...]

    @property
    def pinned(self) -> tuple[CoupledGroup, ...]:
        """Groups that may not shrink."""
        return tuple(group for group in self.groups if group.reasons)

    @property
    def parameters(self) -> int:
        """Parameters [count] that the program uses."""
        return self.costs.parameter_count

    @property
    def macs(self) -> int:
        """MACs [count] of one example; sequences have 128 tokens."""
        return self.costs.macs

    @cached_property
    def by_name(self) -> dict[str, CoupledGroup]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def graph(self) -> nx.Graph:
        """Parameter dims and their couplings.

        Nodes are (parameter, dim), with `size` and the names of their `groups`;
        edges are couplings, with `group`.
        """
        return _graph(self)

    def parameters_after(self, closed: Mapping[str, Any]) -> int:
        """Parameters [count] that stay if these units go.

        Args:
            closed: Indices of units by name of their group.

        Raises:
            CouplingError: If there is no such group or unit.
        """
        return self.costs.parameters_without(self.dead_units(closed))

    def macs_after(self, closed: Mapping[str, Any]) -> int:
        """MACs [count] of one example that stay if these units go."""
        return self.costs.macs_without(self.dead_units(closed))

    def dead_units(self, closed: Mapping[str, Any]) -> BoolArray:
        """Flag per unit of `flow`: whether it goes with the closed units.

        A closed head takes what it owns. A head whose values are all closed is closed.
        """
        classes = np.zeros(self.classes.count, bool)
        for name, indices in closed.items():
            group = self._group(name)
            chosen = (
                torch.as_tensor(indices, dtype=torch.int64).cpu().numpy().reshape(-1)
            )
            if chosen.size and not 0 <= chosen.min() <= chosen.max() < group.size:
                raise CouplingError(
                    f"group {name} has units 0 to {group.size - 1}, "
                    f"got {chosen.min()} to {chosen.max()}"
                )
            classes[group.classes[chosen]] = True
        return _dead_units(self.classes, self.roles, classes)

    def explain(self, name: str) -> str:
        """Why units may or may not shrink, for a group, parameter or module.

        Raises:
            CouplingError: If nothing has that name.
        """
        from fgcompile.analysis.table import explanation

        return explanation(self, name)

    def __str__(self) -> str:
        from fgcompile.analysis.table import table

        return table(self)

    def _group(self, name: str) -> CoupledGroup:
        if name not in self.by_name:
            raise CouplingError(
                f"no group {name!r}\n  Groups are {', '.join(self.by_name)}."
            )
        return self.by_name[name]


def find_groups(program: Program) -> Analysis:
    """The coupled groups of `program`."""
    flow = trace_planes(program)
    roles = roles_of(program, flow)
    classes = classes_of(flow, roles.scored | roles.passed, roles.headed)
    kinds = kinds_of(classes, roles)
    costs = costs_of(program, flow)
    lots = _lots(flow, classes)
    parameters, macs = unit_costs(costs, classes, lots)
    members = _members(flow, classes, lots)
    reasons = _reasons(flow, classes, lots)
    names = distinct(
        [
            group_name(kinds[lot[0]], [(m.parameter, m.dim) for m in found])
            for lot, found in zip(lots, members, strict=True)
        ]
    )
    groups = [
        CoupledGroup(
            name,
            kinds[lot[0]],
            lot.size,
            tuple(found),
            () if kinds[lot[0]] == "residual" and _restorable(why) else why,
            torch.from_numpy(parameters[k]).float(),
            torch.from_numpy(macs[k]).float(),
            lot,
        )
        for k, (name, lot, found, why) in enumerate(
            zip(names, lots, members, reasons, strict=True)
        )
    ]
    return Analysis(program, flow, classes, roles, costs, tuple(groups))


def _restorable(reasons: tuple[Reason, ...]) -> bool:
    """Whether only outputs need the units: lowering puts closed ones back as zeros."""
    return all(reason.node.op == "output" for reason in reasons)


def _lots(flow: Flow, classes: Classes) -> list[UnitIds]:
    """Classes of each group, units in the order of their first member."""
    if not classes.count:
        return []
    pinned = np.zeros(classes.count, bool)
    for touched, _ in classes.pins:
        pinned[touched] = True
    signatures = unit_signatures(classes, len(flow.units.families))
    keys = signatures ^ pinned.astype(np.uint64)
    group = np.unique(keys, return_inverse=True)[1].reshape(-1)
    order = np.lexsort((classes.first, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    lots = np.split(order, starts[1:])
    depth = _depths(flow, classes)
    return sorted(lots, key=lambda lot: (depth[lot].min(), classes.first[lot[0]]))


def _depths(flow: Flow, classes: Classes) -> NDArray[np.int64]:
    """Position of the first step that aligns a unit of each class."""
    depth = np.full(classes.count, len(flow.steps), np.int64)
    for position in reversed(range(len(flow.steps))):
        step = flow.steps[position]
        for slot in step.slots if isinstance(step, Align) else ():
            ids = flow.values[slot.value].planes[slot.plane]
            depth[classes.labels[ids[ids >= 0]]] = position
    return depth


def _members(flow: Flow, classes: Classes, lots: list[UnitIds]) -> list[list[Member]]:
    """Members of each lot, in the order of the parameters."""
    lot_of = np.empty(classes.count, np.int64)
    unit_of = np.empty(classes.count, np.int64)
    for k, lot in enumerate(lots):
        lot_of[lot], unit_of[lot] = k, np.arange(lot.size)
    members: list[list[Member]] = [[] for _ in lots]
    for family in flow.units.families:
        if not family.name:
            continue
        own = classes.labels[family.ids]
        owner = classes.owner[family.ids]
        for held in (own, owner):
            lot = np.where(held >= 0, lot_of[held], -1)
            for k in np.flatnonzero(np.bincount(lot[lot >= 0])).tolist():
                index = np.where(lot == k, unit_of[held], -1)
                found = Member(family.name, family.dim, torch.from_numpy(index))
                members[k].append(found)
    return members


def _reasons(
    flow: Flow, classes: Classes, lots: list[UnitIds]
) -> list[tuple[Reason, ...]]:
    lot_of = np.empty(classes.count, np.int64)
    for k, lot in enumerate(lots):
        lot_of[lot] = k
    found: list[dict[int, Reason]] = [{} for _ in lots]
    for touched, reason in classes.pins:
        for k in np.unique(lot_of[touched]):
            found[k][reason] = flow.reasons[reason]
    return [tuple(reasons.values()) for reasons in found]


def _dead_units(classes: Classes, roles: Roles, closed: BoolArray) -> BoolArray:
    passed = np.flatnonzero(roles.passed & (classes.owner >= 0))
    owners = classes.owner[passed]
    alive = np.zeros(classes.count, bool)
    alive[owners[~closed[classes.labels[passed]]]] = True
    emptied = np.zeros(classes.count, bool)
    emptied[owners] = True
    closed = closed | (emptied & ~alive)
    dead = closed[classes.labels] | (classes.owner >= 0) & closed[classes.owner]
    unit, head = classes.shared
    stays = np.zeros(dead.size, bool)
    stays[unit[~closed[head]]] = True
    has_owners = np.zeros(dead.size, bool)
    has_owners[unit] = True
    return dead | (has_owners & ~stays)


def _graph(analysis: Analysis) -> nx.Graph:
    units, classes = analysis.flow.units, analysis.classes
    graph = nx.Graph()
    nodes = [(family.name, family.dim) for family in units.families]
    for family, node in zip(units.families, nodes, strict=True):
        if family.name:
            graph.add_node(node, size=family.size, groups=[])
    group_of = np.full(classes.count, -1, np.int64)
    for k, group in enumerate(analysis.groups):
        group_of[group.classes] = k
        for member in group.members:
            graph.nodes[member.parameter, member.dim]["groups"].append(group.name)
    for first, second, k in _family_pairs(units.couplings(), classes, group_of):
        if units.families[first].name and units.families[second].name:
            name = analysis.groups[k].name
            graph.add_edge(nodes[first], nodes[second], group=name)
    return graph


def _family_pairs(
    pairs: tuple[UnitIds, UnitIds], classes: Classes, group_of: UnitIds
) -> Iterable[tuple[int, int, int]]:
    left, right = pairs
    rows = np.stack(
        [
            classes.family[left],
            classes.family[right],
            group_of[classes.labels[left]],
        ],
        axis=1,
    )
    return (tuple(row) for row in np.unique(rows, axis=0).tolist())
