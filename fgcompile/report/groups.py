"""Group changes: one row per set of parameter dims that changed together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fgcompile.report.changes import GroupChange, Member
from fgcompile.report.coupling import Component, coupled_dims
from fgcompile.report.kept import KeptIndices
from fgcompile.report.matching import Matching
from fgcompile.report.natural import common_module, natural_key
from fgcompile.report.pairs import Pairs, TensorPair, label_tensors
from fgcompile.report.roles import is_convolution, is_embedding, is_norm, role_of
from fgcompile.report.summary import Group, ModelSummary, ParameterRef

Uses = Mapping[str, set[str]]


def group_changes(
    before: ModelSummary, after: ModelSummary, matching: Matching, pairs: Pairs
) -> tuple[GroupChange, ...]:
    """Every changed parameter dim in exactly one group, in natural order.

    Groups that an analysis of `before` found keep their names; the others are read
    off the pair. Without any graph nothing is known to be coupled, and the parameters
    speak for themselves.
    """
    if not before.nodes and not after.nodes:
        return ()
    kept = KeptIndices(before, after)
    uses = _uses(before), _uses(after)
    components = coupled_dims(before, after, matching, pairs)
    place = {key: n for n, key in enumerate(label_tensors(before))}
    components.sort(key=lambda c: min(place[pair.before] for pair, _ in c.members))
    rows = [_Row(before, after, component, uses) for component in components]
    kept.solve([(row.component.members, row.before, row.after) for row in rows])
    names = _distinct([row.name(before.groups) for row in rows])
    known = {group.name: group.kind for group in before.groups}
    changes = [
        replace(
            row.change(name, kept.units(row.component.members, row.before)),
            kind=known.get(name, row.kind),
        )
        for row, name in zip(rows, names, strict=True)
    ]
    return tuple(sorted(changes, key=lambda c: (natural_key(c.name), c.before)))


class _Row:
    """One component, with its units worked out."""

    def __init__(
        self,
        before: ModelSummary,
        after: ModelSummary,
        component: Component,
        uses: tuple[Uses, Uses],
    ) -> None:
        self.component = component
        self.members = tuple(
            Member(
                pair.label,
                dim,
                before.parameters[pair.before].shape[dim],
                after.parameters[pair.after].shape[dim],
            )
            for pair, dim in component.members
        )
        self.before, self.after = self._units()
        self.kind = self._kind(*uses)
        self._unit_parameters = self._cost(before, component.members)

    def name(self, groups: Sequence[Group]) -> str:
        """The analysis' name for these dims, else where they are and what they are."""
        dims = {(member.parameter, member.dim) for member in self.members}
        for group in groups:
            if group.size == self.before and dims <= set(group.members):
                return group.name
        module = common_module(
            [member.parameter.rpartition(".")[0] for member in self.members]
        )
        if module.rpartition(".")[2] == self.kind:
            return module
        return f"{module}.{self.kind}" if module else self.kind

    def change(self, name: str, kept: tuple[int, ...] | None) -> GroupChange:
        return GroupChange(
            name=name,
            kind=self.kind,
            before=self.before,
            after=self.after,
            unit_parameters=self._unit_parameters,
            members=self.members,
            kept=kept,
            entries_per_unit=max(m.before for m in self.members) // self.before,
        )

    def _units(self) -> tuple[int, int]:
        """Units before and after: whole heads if a reshape says so, else entries."""
        smallest = min((m.before, m.after) for m in self.members)
        candidates = [
            (split.before, split.after)
            if split.before
            else (smallest[0] // split.inner, smallest[1] // split.inner)
            for split in self.component.splits
            if split.inner > 1
        ]
        candidates = [pair for pair in candidates if self._divides(*pair)]
        if candidates:
            return min(candidates)
        if self._divides(*smallest):
            return smallest
        sizes = Counter((m.before, m.after) for m in self.members)
        return max(sizes, key=lambda size: (sizes[size], size))

    def _divides(self, before: int, after: int) -> bool:
        return before > 0 and all(
            member.before % before == 0
            and member.before // before * after == member.after
            for member in self.members
        )

    def _kind(self, old: Uses, new: Uses) -> str:
        roles = {
            use[dim]
            for pair, dim in self.component.members
            for use in old.get(pair.old_label, set()) | new.get(pair.new_label, set())
        }
        if "c" in roles:
            return "conv"
        splits = self.component.splits
        whole = self.before < max(m.before for m in self.members)
        if whole and any(split.inner > 1 for split in splits):
            return "head"
        if "e" in roles or "s" in roles:
            return "residual"
        if any(split.inner == 1 and split.before for split in splits):
            # Queries and keys only put these dims out; values hand them on.
            return "vo" if "i" in roles else "qk"
        if "g" in roles:
            return "expert"
        return "mlp" if {"i", "o"} <= roles else "dim"

    def _cost(
        self, before: ModelSummary, members: Sequence[tuple[TensorPair, int]]
    ) -> int:
        total = {
            (pair.before, dim): before.parameters[pair.before].count
            for pair, dim in members
            if before.parameters[pair.before].trained
        }
        return sum(total.values()) // self.before if self.before else 0


def _uses(summary: ModelSummary) -> dict[str, set[str]]:
    """Per label, one letter per dim for each use: roles, and c, e, s by operator.

    "c" is a channel of a convolution, "e" the width of an embedding table, "s" of a
    normalisation.
    """
    uses: dict[str, set[str]] = {}
    for node in summary.nodes:
        for slot, operand in enumerate(node.operands):
            if isinstance(operand, ParameterRef):
                rank = len(summary.parameters[operand.key].shape)
                role = role_of(node, slot, rank) or "s" * rank * is_norm(node)
                if is_convolution(node):
                    role = role.replace("i", "c").replace("o", "c")
                elif is_embedding(node) and slot == 0:
                    role = role.replace("o", "e")
                label = operand.label or operand.key
                uses.setdefault(label, set()).add(role.ljust(rank, "-"))
    return uses


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where several groups would share one."""
    counts = Counter(names)
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if counts[name] == 1 else f"{name} ({seen[name]})")
    return distinct
