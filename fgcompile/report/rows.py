"""Rows of a report, in words, before any layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fgcompile.report.changes import (
    GroupChange,
    Measure,
    NodeChange,
    ParameterChange,
    Pinned,
    Verdict,
)
from fgcompile.report.folding import Fold
from fgcompile.report.natural import common_module
from fgcompile.report.wording import (
    difference,
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


def measured(measure: Measure, text: Callable[[int | None], str]) -> str:
    if measure.before is None and measure.after is None:
        return ""
    if measure.delta == 0:
        return f"{text(measure.after)}, unchanged"
    change = percent(measure)
    suffix = f" ({change})" if change else ""
    return f"{text(measure.before)} -> {text(measure.after)}{suffix}"


def verification(verdict: Verdict) -> Fact:
    verified = verdict.verified
    if verified is None:
        return Fact("verified", "no, the two were not run side by side", "quiet")
    runs = f" on {plural(len(verified.shapes), 'shape')}" if verified.shapes else ""
    method = f" in {verified.method}" if verified.method else ""
    text = f"max difference {difference(verified.max_difference)}{runs}{method}"
    if not verified.ok:
        return Fact("verified", f"{text}, above {verified.tolerance:.1e}", "bad")
    return Fact("verified", text, "good")


def group_content(group: GroupChange) -> tuple[object, ...]:
    return (
        group.kind,
        group.before,
        group.after,
        group.unit_parameters,
        group.entries_per_unit,
        len(group.members),
    )


def group_row(row: Fold[GroupChange]) -> GroupRow:
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


def pinned_row(row: Fold[Pinned]) -> PinnedRow:
    first = row.items[0]
    each = f" in each of {len(row.items)}" if len(row.items) > 1 else ""
    place = first.module if len(row.items) == 1 else ""
    where = " ".join(part for part in (first.node, place, first.line) if part)
    return PinnedRow(
        row.name, f"{first.size:,}{each}", first.reason, where, first.remedy
    )


def _signed(count: int) -> str:
    return ("+" if count > 0 else "") + short(count)


def module_row(name: str, changes: list[NodeChange]) -> ModuleRow:
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


def loose_text(change: ParameterChange) -> str:
    """Without shapes: what a quantiser adds beside each weight is one row."""
    if change.action == "changed":
        return tensor_text(change)
    return f"{change.action} {change.dtype_before or change.dtype_after}"


def tensor_text(change: ParameterChange) -> str:
    if change.action != "changed":
        shape = change.shape_before or change.shape_after or ()
        dtype = change.dtype_before or change.dtype_after
        return f"{change.action} {dtype}{list(shape)}"
    if change.values_changed:
        return f"other values, {change.dtype_after}{list(change.shape_after or ())}"
    parts = [f"{change.dtype_before}{list(change.shape_before or ())}"]
    parts.append(f"{change.dtype_after}{list(change.shape_after or ())}")
    return " -> ".join(parts)
