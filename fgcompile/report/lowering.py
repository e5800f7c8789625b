"""The report of a lowering: a graph diff that knows the coupled groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fgcompile.analysis.coupling import CoupledGroup, find_groups
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
    notes = [
        note
        for group in analysis.groups
        if (note := _kept_although_closed(group, remaining[group.name], closed))
    ]
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


def _kept_although_closed(
    group: CoupledGroup, remaining: Tensor, closed: Mapping[str, Tensor]
) -> Note | None:
    shut = closed.get(group.name)
    if shut is None or not bool((shut & remaining).any()):
        return None
    count = int((shut & remaining).sum())
    reason = group.pinned
    why = (
        reason.text
        if reason is not None
        else ("other rows of the same tensor keep as many, and tensors are rectangular")
    )
    return Note(
        f"{count} of {int(shut.sum())} closed units stay: {why}", group.name, "warning"
    )
