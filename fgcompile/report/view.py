"""What every rendering shows, in words: the diff without its layout."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from fgcompile.report.changes import (
    Action,
    GroupChange,
    Measure,
    NodeChange,
    ParameterChange,
    Pinned,
    Verdict,
)
from fgcompile.report.folding import Fold, fold
from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.natural import common_module
from fgcompile.report.wording import (
    difference,
    in_bytes,
    listed,
    percent,
    plural,
    short,
)


@dataclass(frozen=True)
class Fact:
    """One item of the verdict line.

    Args:
        label: What it is about.
        text: The words.
        tone: "good", "bad", "quiet" or empty.
        names: Names from the files that belong to the text.
    """

    label: str
    text: str
    tone: str = ""
    names: str = ""


@dataclass(frozen=True)
class GroupRow:
    """Equal changes of one or more groups."""

    name: str
    kind: str
    before: int
    after: int
    change: str
    couples: str
    parameters: str
    kept: str
    members: tuple[str, ...]
    digests: tuple[str, ...]
    groups: tuple[GroupChange, ...]


@dataclass(frozen=True)
class PinnedRow:
    """Units that stay for the same reason, of one or more groups."""

    name: str
    units: str
    reason: str
    where: str
    remedy: str


@dataclass(frozen=True)
class ModuleRow:
    """What happened to the operations of one module, or of several alike.

    `resized` holds the changes that only follow from other sizes.
    """

    name: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    changed: tuple[str, ...]
    resized: tuple[str, ...]


class View:
    """Words for one diff."""

    def __init__(self, diff: GraphDiff) -> None:
        self.diff = diff

    @property
    def title(self) -> str:
        return self.diff.title or "model"

    @cached_property
    def headline(self) -> str:
        """One clause that names the change."""
        diff = self.diff
        if diff.same:
            return "no change"
        parts = []
        if diff.breaking:
            parts.append("the interface breaks")
        elif any(change.side != "model" for change in diff.interface):
            parts.append("the interface changed")
        parts += [
            f"opset {c.before or 'none'} -> {c.after or 'none'}"
            for c in diff.interface
            if c.kind == "opset"
        ]
        smaller = sum(group.after < group.before for group in diff.groups)
        larger = len(diff.groups) - smaller
        parts += [f"{plural(smaller, 'group')} shrank"] * bool(smaller)
        parts += [f"{plural(larger, 'group')} grew"] * bool(larger)
        parts += self._values
        parts += [self.operations] * any(not change.follows for change in diff.nodes)
        if not parts:
            parts.append(f"{plural(len(diff.parameters), 'tensor')} changed")
        return ", ".join(parts)

    @property
    def _values(self) -> list[str]:
        """Which stored values are of another type, or simply others."""
        types = Counter(
            f"{change.dtype_before} -> {change.dtype_after}"
            for change in self.diff.parameters
            if change.action == "changed" and change.dtype_before != change.dtype_after
        )
        parts = [f"{plural(n, 'tensor')} {text}" for text, n in sorted(types.items())]
        others = sum(change.values_changed for change in self.diff.parameters)
        return parts + [f"{plural(others, 'tensor')} hold other values"] * bool(others)

    @cached_property
    def operations(self) -> str:
        """Such as "3 operations added, 1 changed"; new sizes alone do not count."""
        nodes = [change for change in self.diff.nodes if not change.follows]
        counts = Counter(change.action for change in nodes)
        order: tuple[Action, ...] = ("added", "removed", "changed")
        texts = [f"{counts[action]:,} {action}" for action in order if counts[action]]
        if not texts:
            return "unchanged but for sizes" if self.diff.nodes else "unchanged"
        first, *rest = texts
        number, _, action = first.partition(" ")
        noun = "operation" if number == "1" else "operations"
        return ", ".join([f"{number} {noun} {action}", *rest])

    @cached_property
    def facts(self) -> list[Fact]:
        """The verdict, in the order a reviewer asks."""
        verdict = self.diff.verdict
        macs = _measured(verdict.macs, short)
        shape = listed(re.split(r"(?<=\]), ", verdict.macs_shape), 3)
        facts = [
            Fact("parameters", _measured(verdict.parameters, short)),
            Fact("MACs", macs and f"{macs} at", names=shape),
            Fact("weights", _measured(verdict.size_bytes, in_bytes)),
            _verification(verdict),
            self._interface_fact(),
        ]
        for budget in verdict.budgets:
            tone = "good" if budget.ok else "bad"
            state = "met" if budget.ok else "exceeded"
            text = f"{budget.measure} {budget.limit} {state} ({budget.actual})"
            facts.append(Fact("budget", text, tone))
        return [fact for fact in facts if fact.text]

    def _interface_fact(self) -> Fact:
        if self.diff.breaking:
            return Fact("interface", "breaks callers", "bad")
        if any(change.side != "model" for change in self.diff.interface):
            return Fact("interface", "changed, callers keep working", "quiet")
        return Fact("interface", "unchanged", "good")

    @cached_property
    def interface(self) -> list[tuple[str, ...]]:
        """Rows of side, name, what, before, after, effect."""
        return [
            (
                change.side,
                change.name,
                change.kind,
                change.before or "none",
                change.after or "none",
                "breaks callers" if change.breaking else "compatible",
            )
            for change in self.diff.interface
        ]

    @cached_property
    def groups(self) -> list[GroupRow]:
        """One row per coupled group, equal ones of repeated layers together."""
        rows = fold(self.diff.groups, lambda group: group.name, _group_content)
        return [_group_row(row) for row in rows]

    @cached_property
    def modules(self) -> list[ModuleRow]:
        """Operation changes by module, equal ones of repeated layers together."""
        by_module: dict[str, list[NodeChange]] = {}
        for change in self.diff.nodes:
            by_module.setdefault(change.module, []).append(change)
        rows = [_module_row(name, changes) for name, changes in by_module.items()]
        folds = fold(rows, lambda row: row.name, lambda row: replace(row, name=""))
        return [replace(row.items[0], name=row.name) for row in folds]

    @cached_property
    def pinned(self) -> list[PinnedRow]:
        """What had to stay; equal reasons in repeated layers together."""
        rows = fold(
            self.diff.pinned,
            lambda pin: pin.name,
            lambda pin: (pin.size, pin.reason, pin.line, pin.remedy),
        )
        return [_pinned_row(row) for row in rows]

    @cached_property
    def tensors(self) -> list[tuple[str, str]]:
        """Name and change of the tensors that the groups do not explain."""
        resized = {m.parameter for group in self.diff.groups for m in group.members}
        left = [
            change
            for change in self.diff.parameters
            if change.name not in resized or change.dtype_before != change.dtype_after
        ]
        named = [change for change in left if "." in change.name]
        rows = fold(named, lambda change: change.name, _tensor_text)
        loose = Counter(_loose_text(c) for c in left if "." not in c.name)
        return [(row.name, _tensor_text(row.items[0])) for row in rows] + [
            (f"{plural(count, 'tensor')} outside of modules", text)
            for text, count in loose.items()
        ]


def _measured(measure: Measure, text: object) -> str:
    assert callable(text)
    if measure.before is None and measure.after is None:
        return ""
    if measure.delta == 0:
        return f"{text(measure.after)}, unchanged"
    change = percent(measure)
    suffix = f" ({change})" if change else ""
    return f"{text(measure.before)} -> {text(measure.after)}{suffix}"


def _verification(verdict: Verdict) -> Fact:
    verified = verdict.verified
    if verified is None:
        return Fact("verified", "no, the two were not run side by side", "quiet")
    runs = f" on {plural(len(verified.shapes), 'shape')}" if verified.shapes else ""
    method = f" in {verified.method}" if verified.method else ""
    text = f"max difference {difference(verified.max_difference)}{runs}{method}"
    if not verified.ok:
        return Fact("verified", f"{text}, above {verified.tolerance:.1e}", "bad")
    return Fact("verified", text, "good")


def _group_content(group: GroupChange) -> tuple[object, ...]:
    return (
        group.kind,
        group.before,
        group.after,
        group.unit_parameters,
        group.entries_per_unit,
        len(group.members),
    )


def _group_row(row: Fold[GroupChange]) -> GroupRow:
    first = row.items[0]
    removed = [(g.unit_parameters or 0) * (g.before - g.after) for g in row.items]
    each = f" in each of {len(row.items)}" if len(row.items) > 1 else ""
    known = [group.kept_digest for group in row.items if group.kept_digest]
    return GroupRow(
        name=row.name,
        kind=first.kind,
        before=first.before,
        after=first.after,
        change=percent(Measure(first.before, first.after)),
        couples=plural(len(first.members), "tensor") + each,
        parameters=_signed(-sum(removed)) if any(removed) else "",
        kept=_kept(known, len(row.items)),
        members=_members(first),
        digests=tuple(group.kept_digest or "not known" for group in row.items),
        groups=row.items,
    )


def _members(group: GroupChange) -> tuple[str, ...]:
    """Parameter dims, named from the module that holds them all."""
    module = common_module([m.parameter.rpartition(".")[0] for m in group.members])
    start = len(module) + 1 if module else 0
    return tuple(
        f"{m.parameter[start:]}:{m.dim} {m.before} -> {m.after}" for m in group.members
    )


def _kept(digests: list[str], groups: int) -> str:
    if not digests:
        return "not known"
    if groups == 1:
        return digests[0]
    if len(set(digests)) == 1 and len(digests) == groups:
        return f"{digests[0]}, the same in all"
    return f"{len(digests)} of {groups} known"


def _pinned_row(row: Fold[Pinned]) -> PinnedRow:
    first = row.items[0]
    each = f" in each of {len(row.items)}" if len(row.items) > 1 else ""
    place = first.module if len(row.items) == 1 else ""
    where = " ".join(part for part in (first.node, place, first.line) if part)
    return PinnedRow(
        row.name, f"{first.size:,}{each}", first.reason, where, first.remedy
    )


def _signed(count: int) -> str:
    return ("+" if count > 0 else "") + short(count)


def _module_row(name: str, changes: list[NodeChange]) -> ModuleRow:
    counts = {
        action: Counter(c.op for c in changes if c.action == action)
        for action in ("removed", "added")
    }
    changed, resized = (
        Counter(
            _change_text(c)
            for c in changes
            if c.action == "changed" and c.follows == follows
        )
        for follows in (False, True)
    )
    return ModuleRow(
        name or "(no module)",
        tuple(_times(op, n) for op, n in counts["removed"].items()),
        tuple(_times(op, n) for op, n in counts["added"].items()),
        tuple(_times(text, n) for text, n in changed.items()),
        tuple(_times(text, n) for text, n in resized.items()),
    )


def _times(text: str, count: int) -> str:
    return text if count == 1 else f"{count}x {text}"


def _change_text(change: NodeChange) -> str:
    parts = [
        f"{c.name} {c.before or 'unset'} -> {c.after or 'unset'}"
        for c in change.changes
    ]
    return f"{change.op}: {'; '.join(parts)}"


def _loose_text(change: ParameterChange) -> str:
    """Without shapes: what a quantiser adds beside each weight is one row."""
    if change.action == "changed":
        return _tensor_text(change)
    return f"{change.action} {change.dtype_before or change.dtype_after}"


def _tensor_text(change: ParameterChange) -> str:
    if change.action != "changed":
        shape = change.shape_before or change.shape_after or ()
        dtype = change.dtype_before or change.dtype_after
        return f"{change.action} {dtype}{list(shape)}"
    if change.values_changed:
        return f"other values, {change.dtype_after}{list(change.shape_after or ())}"
    parts = [f"{change.dtype_before}{list(change.shape_before or ())}"]
    parts.append(f"{change.dtype_after}{list(change.shape_after or ())}")
    return " -> ".join(parts)
