"""What every rendering shows, in words: the diff without its layout."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cached_property

from fgcompile.report.changes import (
    Action,
    NodeChange,
)
from fgcompile.report.folding import fold
from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.rows import (
    Fact,
    GroupRow,
    ModuleRow,
    PinnedRow,
    group_content,
    group_row,
    loose_text,
    measured,
    module_row,
    pinned_row,
    tensor_text,
    verification,
)
from fgcompile.report.wording import (
    difference,
    in_bytes,
    listed,
    plural,
    short,
)


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
        macs = measured(verdict.macs, short)
        shape = listed(re.split(r"(?<=\]), ", verdict.macs_shape), 3)
        facts = [
            Fact("parameters", measured(verdict.parameters, short)),
            Fact("MACs", macs and f"{macs} at", names=shape),
            Fact("weights", measured(verdict.size_bytes, in_bytes)),
            verification(verdict),
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
    def variants(self) -> list[tuple[str, ...]]:
        """Rows of file, size, latency, largest difference, compared with."""
        return [
            (
                variant.name,
                in_bytes(variant.size_bytes),
                ""
                if variant.latency_ratio is None
                else f"{variant.latency_ratio:.2f} x",
                "" if variant.difference is None else difference(variant.difference),
                variant.reference,
            )
            for variant in self.diff.variants
        ]

    @cached_property
    def groups(self) -> list[GroupRow]:
        """One row per coupled group, equal ones of repeated layers together."""
        rows = fold(self.diff.groups, lambda group: group.name, group_content)
        return [group_row(row) for row in rows]

    @cached_property
    def modules(self) -> list[ModuleRow]:
        """Operation changes by module, equal ones of repeated layers together."""
        by_module: dict[str, list[NodeChange]] = {}
        for change in self.diff.nodes:
            by_module.setdefault(change.module, []).append(change)
        rows = [module_row(name, changes) for name, changes in by_module.items()]
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
        return [pinned_row(row) for row in rows]

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
        rows = fold(named, lambda change: change.name, tensor_text)
        loose = Counter(loose_text(c) for c in left if "." not in c.name)
        return [(row.name, tensor_text(row.items[0])) for row in rows] + [
            (f"{plural(count, 'tensor')} outside of modules", text)
            for text, count in loose.items()
        ]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"
