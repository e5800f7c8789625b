"""Keeps layers alike, for loaders and engines that know one size for all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgcompile.analysis.coupling import CoupledGroup, find_groups
from fgcompile.program import Program
from fgcompile.report.lowering import remaining_units
from fgcompile.targets.module.expressible import Revived

Key = tuple[str, int, tuple[str, ...]]


def evened(
    model: nn.Module, before: Program, after: Program, kinds: tuple[str, ...] = ()
) -> Revived:
    """The fewest dead units that must stay for all layers to keep equally many.

    Coupled groups correspond if their members have the same names but for the places
    of layers in a module list.

    Args:
        model: Tells which parts of a name are such places.
        before: The program of `model`.
        after: The same, lowered without regard to this.
        kinds: Kinds of groups that this is about; all kinds if empty.

    Returns:
        Indices that stay although they are dead, by parameter and dim.
    """
    alike: dict[Key, list[tuple[CoupledGroup, Tensor]]] = {}
    for group in find_groups(before).groups:
        if kinds and group.kind not in kinds:
            continue
        remaining = remaining_units(group, after)
        alike.setdefault(_key(model, group), []).append((group, remaining))
    revived: Revived = {}
    for groups in alike.values():
        most = max(int(remaining.sum()) for _, remaining in groups)
        for group, remaining in groups:
            dead = torch.nonzero(~remaining).flatten()
            _revive(revived, group, dead[: most - int(remaining.sum())])
    return revived


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
