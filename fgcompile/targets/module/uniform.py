"""Keeps layers alike, for loaders and engines that know one size for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fgcompile.analysis.coupling import CoupledGroup, find_groups
from fgcompile.program import Program
from fgcompile.report.lowering import remaining_units
from fgcompile.targets.module.configuration import Place
from fgcompile.targets.module.expressible import Revived

Key = tuple[str, int, tuple[str, ...]]


@dataclass(eq=False)
class Alike:
    """Coupled groups that keep equally many units.

    Attributes:
        groups: With the units that each cannot lose, bool `[size]`.
        count: Units [count] that each keeps.
        why: What makes it so many.
    """

    groups: list[tuple[CoupledGroup, Tensor]]
    count: int
    why: str = "all layers keep equally many"

    @property
    def size(self) -> int:
        """Units of each group in the dense model [count]."""
        return self.groups[0][0].size

    @property
    def places(self) -> set[Place]:
        """Parameter dims that the groups are made of."""
        return {(m.parameter, m.dim) for g, _ in self.groups for m in g.members}

    @property
    def revived(self) -> dict[str, str]:
        """How many units stay that could go and why, by name of their group."""
        more = {g.name: self.count - int(left.sum()) for g, left in self.groups}
        return {
            name: f"{n} units stay that could go: {self.why}"
            for name, n in more.items()
            if n
        }

    @property
    def cost(self) -> float:
        """Parameters [count] that come back if all units do, about."""
        lost = 1 - self.count / self.size
        return lost * sum(float(group.parameters.sum()) for group, _ in self.groups)

    def next_count(self) -> int:
        """The next larger number of units that divides well, or all."""
        size, more = self.size, self.count + 1
        divisors = (d for d in range(1, size + 1) if size % d == 0)
        steps = {-(-self.count // d) * d for d in divisors}
        return min((n for n in steps if n >= more), default=size)


def find_alike(
    model: nn.Module, before: Program, after: Program, kinds: tuple[str, ...] = ()
) -> list[Alike]:
    """All sets of groups that correspond, each with the fewest units that agree.

    Coupled groups correspond if their members have the same names but for the places
    of layers in a module list.

    Args:
        model: Tells which parts of a name are such places.
        before: The program of `model`.
        after: The same, lowered without regard to this.
        kinds: Kinds of groups that this is about; all kinds if empty.
    """
    groups = find_groups(before).groups
    remaining = {group.name: remaining_units(group, after) for group in groups}
    heads = _heads_left(groups, remaining)
    found: dict[Key, list[CoupledGroup]] = {}
    for group in groups:
        if not kinds or group.kind in kinds:
            found.setdefault(_key(model, group), []).append(group)
    return [
        _alike([(group, remaining[group.name]) for group in alike])
        for alike in found.values()
        if not all(_follows_heads(g, remaining[g.name], heads) for g in alike)
    ]


def _heads_left(
    groups: Iterable[CoupledGroup], remaining: Mapping[str, Tensor]
) -> dict[Place, Tensor]:
    """Whether the head is left that owns each index, by parameter dim."""
    return {
        (member.parameter, member.dim): remaining[group.name][member.index.clamp(min=0)]
        | (member.index < 0)
        for group in groups
        if group.kind == "head"
        for member in group.members
    }


def _follows_heads(
    group: CoupledGroup, remaining: Tensor, heads: Mapping[Place, Tensor]
) -> bool:
    """Whether `group` lost no other units than those of lost heads.

    It agrees with its like if the heads do.
    """
    if group.kind == "head":
        return False
    if remaining.all():
        return True
    for member in group.members:
        left = heads.get((member.parameter, member.dim))
        dead = ~remaining[member.index.clamp(min=0)] & (member.index >= 0)
        if left is None or bool((dead & left).any()):
            return False
    return True


def joined(sets: Sequence[Alike], entries: Iterable[set[Place]]) -> list[Alike]:
    """`sets`, of which those are one that an entry of a configuration makes agree.

    Args:
        sets: From `find_alike`.
        entries: The parameter dims that depend on each entry.
    """
    result = list(sets)
    for places in entries:
        by_size: dict[tuple[str, int], list[Alike]] = {}
        for alike in result:
            if not places.isdisjoint(alike.places):
                key = alike.groups[0][0].kind, alike.size
                by_size.setdefault(key, []).append(alike)
        for several in by_size.values():
            if len(several) > 1:
                groups = [pair for alike in several for pair in alike.groups]
                result = [alike for alike in result if alike not in several]
                result.append(_alike(groups))
    return result


def revived_units(sets: Iterable[Alike]) -> Revived:
    """Indices that stay although they are dead, by parameter and dim."""
    revived: Revived = {}
    for alike in sets:
        for group, remaining in alike.groups:
            dead = torch.nonzero(~remaining).flatten()
            _revive(revived, group, dead[: alike.count - int(remaining.sum())])
    return revived


def _alike(groups: list[tuple[CoupledGroup, Tensor]]) -> Alike:
    return Alike(groups, max(int(remaining.sum()) for _, remaining in groups))


def _key(model: nn.Module, group: CoupledGroup) -> Key:
    members = (f"{_anonymous(model, m.parameter)}:{m.dim}" for m in group.members)
    return group.kind, group.size, tuple(sorted(members))


def _anonymous(model: nn.Module, name: str) -> str:
    """`name` with "*" for every place in a module list."""
    parts, module = [], model
    for part in name.split("."):
        parts.append("*" if isinstance(module, nn.ModuleList) else part)
        module = module._modules.get(part) or nn.Identity()
    return ".".join(parts)


def _revive(revived: Revived, group: CoupledGroup, units: Tensor) -> None:
    for member in group.members if len(units) else ():
        index = torch.nonzero(torch.isin(member.index, units)).flatten()
        dims = revived.setdefault(member.parameter, {})
        old = dims.get(member.dim, index)
        dims[member.dim] = torch.cat([old, index]).unique()
