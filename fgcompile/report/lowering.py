"""The report of a lowering: a graph diff that knows the coupled groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from fgcompile.analysis.coupling import CoupledGroup, find_groups
from fgcompile.analysis.obstacles import Obstacles
from fgcompile.analysis.steps import Reason
from fgcompile.program import Program, module_path, source_line
from fgcompile.report.changes import GroupChange, Member, Note, Pinned, Verification
from fgcompile.report.compare import diff_summaries
from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.load_program import summarize_program

_REASONS = 8


def lowering_report(
    before: Program,
    after: Program,
    closed: Mapping[str, Tensor],
    verified: Verification | None,
    pinned_by_code: Sequence[str] = (),
    title: str = "",
) -> GraphDiff:
    """What `lower` made of `before`.

    Args:
        before: The model without gates.
        after: The lowered model, with the indices that it kept.
        closed: Closed units of each gate, by name: bool, `[size]`.
        verified: What running both showed.
        pinned_by_code: What a target that keeps the model's code cannot follow; said
            if closed units stay.
        title: What the model is called.
    """
    analysis = find_groups(before)
    remaining = {g.name: remaining_units(g, after) for g in analysis.groups}
    changes = [
        _change(group, after, remaining[group.name])
        for group in analysis.groups
        if not remaining[group.name].all()
    ]
    pinned = [_pinned(g, g.pinned) for g in analysis.groups if g.pinned is not None]
    notes = _notes(analysis.groups, remaining, closed, after)
    if notes:
        notes += [Note(text) for text in _shortened(pinned_by_code)]
    return diff_summaries(
        summarize_program(before),
        summarize_program(after),
        groups=changes,
        verified=verified,
        pinned=pinned,
        notes=notes,
        title=title,
    )


def _shortened(reasons: Sequence[str]) -> list[str]:
    first = [f"the model's code keeps dims whole: {r}" for r in reasons[:_REASONS]]
    more = len(reasons) - _REASONS
    return [*first, f"{more} more such places"] if more > 0 else first


def remaining_units(group: CoupledGroup, after: Program) -> Tensor:
    """Which units have at least one index left, bool `[size]`."""
    left = torch.zeros(group.size, dtype=torch.bool)
    present = {str(node.target) for node in after.graph.nodes if node.op == "get_attr"}
    for member in group.members:
        if member.parameter not in present:
            continue
        kept = after.kept.get(member.parameter, {}).get(member.dim)
        units = member.index if kept is None else member.index[kept]
        left[units[units >= 0]] = True
    return left


def _change(group: CoupledGroup, after: Program, remaining: Tensor) -> GroupChange:
    per_unit = 0
    if group.size:
        per_unit = int(group.parameters.float().mean().round())
    return GroupChange(
        name=group.name,
        kind=group.kind,
        before=group.size,
        after=int(remaining.sum()),
        unit_parameters=per_unit,
        members=tuple(
            _member(m.parameter, m.dim, m.index, after) for m in group.members
        ),
        kept=tuple(torch.nonzero(remaining).flatten().tolist()),
    )


def _member(parameter: str, dim: int, index: Tensor, after: Program) -> Member:
    kept = after.kept.get(parameter, {}).get(dim)
    return Member(parameter, dim, len(index), len(index) if kept is None else len(kept))


def _pinned(group: CoupledGroup, reason: Reason | None) -> Pinned:
    assert reason is not None
    return Pinned(
        name=group.name,
        size=group.size,
        reason=reason.text,
        node=reason.node.name,
        module=module_path(reason.node),
        line=source_line(reason.node),
        remedy=reason.remedy,
    )


def _notes(
    groups: Sequence[CoupledGroup],
    remaining: Mapping[str, Tensor],
    closed: Mapping[str, Tensor],
    after: Program,
) -> list[Note]:
    """One for every group of which closed units stay."""
    obstacles: Obstacles | None = None
    notes = []
    for group in groups:
        shut = closed.get(group.name)
        if shut is None or not bool((shut & remaining[group.name]).any()):
            continue
        stays = shut & remaining[group.name]
        if group.pinned is not None:
            why = group.pinned.text
        else:
            obstacles = obstacles or Obstacles(after)
            why = _why(obstacles.first(_places(group, stays, after)))
        text = f"{int(stays.sum())} of {int(shut.sum())} closed units stay: {why}"
        notes.append(Note(text, group.name, "warning"))
    return notes


def _places(
    group: CoupledGroup, units: Tensor, after: Program
) -> Iterator[tuple[str, int, NDArray[np.int64]]]:
    """Where the units lie in the parameters of `after`."""
    for member in group.members:
        kept = after.kept.get(member.parameter, {}).get(member.dim)
        index = member.index if kept is None else member.index[kept]
        here = (index >= 0) & units[index.clamp(min=0)]
        yield member.parameter, member.dim, here.nonzero().flatten().numpy()


def _why(node: Node | None) -> str:
    if node is None:
        return "other rows of the same tensor keep as many, and tensors are rectangular"
    line = source_line(node)
    where = f"{module_path(node) or 'the model'}" + (f" ({line})" if line else "")
    return f"{node.target} in {where} mixes other units into them"
