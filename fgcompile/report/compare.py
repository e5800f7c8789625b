"""From two summaries to a GraphDiff."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fgcompile.report.changes import (
    GroupChange,
    Layer,
    Measure,
    Note,
    Pinned,
    Verdict,
    Verification,
)
from fgcompile.report.cost import count_macs
from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.groups import group_changes
from fgcompile.report.interface import interface_changes
from fgcompile.report.matching import match_nodes
from fgcompile.report.natural import natural_key
from fgcompile.report.node_changes import node_changes
from fgcompile.report.orient import as_modules_hold
from fgcompile.report.pairs import label_tensors, pair_tensors, parameter_changes
from fgcompile.report.summary import ModelSummary


def diff_summaries(
    before: ModelSummary,
    after: ModelSummary,
    *,
    groups: Sequence[GroupChange] | None = None,
    verified: Verification | None = None,
    pinned: Iterable[Pinned] = (),
    notes: Iterable[Note] = (),
    budgets: Iterable[str] = (),
    title: str = "",
) -> GraphDiff:
    """The difference between two models.

    Args:
        before: The model before.
        after: The model after.
        groups: The group changes, where the caller knows them (a lowering does);
            otherwise they are read off the changed dims.
        verified: What running both side by side showed.
        pinned: Units that had to stay, and why.
        notes: Sentences to put into the report, such as closed units that stayed.
        budgets: Limits such as "params=-30%".
        title: Names the pair; not a path.

    Raises:
        BudgetError: If a limit cannot be parsed.
    """
    matching = match_nodes(before, after)
    old, new = _comparable(before, after)
    pairs = pair_tensors(old, new, matching)
    if groups is None:
        groups = group_changes(old, new, matching, pairs)
    changed = parameter_changes(old, new, pairs)
    diff = GraphDiff(
        verdict=Verdict(
            parameters=Measure(before.parameter_count, after.parameter_count),
            macs=Measure(count_macs(before), count_macs(after)),
            size_bytes=Measure(before.size_bytes, after.size_bytes),
            macs_shape=after.stated_shape,
            verified=verified,
        ),
        interface=interface_changes(before, after),
        groups=_once(groups),
        nodes=node_changes(before, after, matching),
        parameters=changed,
        layers=_layers(old, new, groups),
        pinned=tuple(sorted(pinned, key=lambda p: natural_key(p.name))),
        notes=(*_own_notes(before, after), *notes),
        title=title,
    )
    return diff.with_budgets(budgets)


def _once(groups: Sequence[GroupChange]) -> tuple[GroupChange, ...]:
    """Without groups that another one explains: a head takes its dims along."""
    return tuple(
        group
        for group in groups
        if not any(_explains(other, group) for other in groups)
    )


def _explains(outer: GroupChange, inner: GroupChange) -> bool:
    return (
        outer.before < inner.before
        and set(inner.members) <= set(outer.members)
        and all(
            member.before * outer.after == member.after * outer.before
            for member in inner.members
        )
    )


def _comparable(
    before: ModelSummary, after: ModelSummary
) -> tuple[ModelSummary, ModelSummary]:
    """Tensors as modules hold them, where only one of the two is an ONNX graph."""
    if before.dialect == after.dialect:
        return before, after
    one, two = (
        as_modules_hold(summary) if summary.dialect == "onnx" else summary
        for summary in (before, after)
    )
    return one, two


def _layers(
    before: ModelSummary, after: ModelSummary, groups: Sequence[GroupChange]
) -> tuple[Layer, ...]:
    counts = [_by_module(summary) for summary in (before, after)]
    member_of: dict[str, set[str]] = {}
    for group in groups:
        for member in group.members:
            module = member.parameter.rpartition(".")[0]
            member_of.setdefault(module, set()).add(group.name)
    return tuple(
        Layer(
            module,
            Measure(counts[0].get(module, 0), counts[1].get(module, 0)),
            tuple(sorted(member_of.get(module, ()), key=natural_key)),
        )
        for module in sorted(counts[0].keys() | counts[1].keys(), key=natural_key)
    )


def _by_module(summary: ModelSummary) -> dict[str, int]:
    """Parameters [count] by the module path that their first reader gives them."""
    counts: dict[str, int] = {}
    for key, label in label_tensors(summary).items():
        parameter = summary.parameters[key]
        if parameter.trained:
            module = label.rpartition(".")[0] or label
            counts[module] = counts.get(module, 0) + parameter.count
    return counts


def _sizes_differ(before: ModelSummary, after: ModelSummary) -> bool:
    """Whether an input of both was counted at two different sizes."""
    sizes = {p.name: s for p, s in zip(before.inputs, before.input_sizes, strict=False)}
    return any(
        sizes.get(port.name, size) != size
        for port, size in zip(after.inputs, after.input_sizes, strict=False)
    )


def _own_notes(before: ModelSummary, after: ModelSummary) -> list[Note]:
    notes = [Note(text) for text in dict.fromkeys([*before.notes, *after.notes])]
    if before.nodes and after.nodes and _sizes_differ(before, after):
        shapes = f"{before.stated_shape} before and {after.stated_shape} after"
        notes.append(Note(f"MACs are counted at {shapes}: they do not compare"))
    if before.nodes and after.nodes and before.dialect != after.dialect:
        kinds = f"{before.dialect} and {after.dialect}"
        notes.append(
            Note(
                f"the two models have different operators ({kinds}): parameters and "
                "the interface were compared, operations were not"
            )
        )
    return notes
