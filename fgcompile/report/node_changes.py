"""Operations that came, went, or compute something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from fgcompile.report.changes import Action, AttributeChange, NodeChange
from fgcompile.report.follow import follows_sizes
from fgcompile.report.matching import Matching
from fgcompile.report.natural import natural_key
from fgcompile.report.ports import canonical_order, match_ports
from fgcompile.report.summary import (
    Constant,
    InputRef,
    ModelSummary,
    Node,
    NodeRef,
    Operand,
    ParameterRef,
)

_COMMUTATIVE = ("add", "mul", "sum", "max", "min", "and", "or")


def node_changes(
    before: ModelSummary, after: ModelSummary, matching: Matching
) -> tuple[NodeChange, ...]:
    """Changes by module in natural order; inside a module in canonical order.

    A node that only reads or feeds an added or removed node did not change itself.
    """
    if before.dialect != after.dialect:
        return ()
    comparison = _Comparison(before, after, matching)
    changes = [
        _described("removed", before.nodes[i], comparison.place(before, i))
        for i in canonical_order(before)
        if i not in matching.after_of
    ]
    for j in canonical_order(after):
        i = matching.before_of.get(j)
        if i is None:
            changes.append(
                _described("added", after.nodes[j], comparison.place(after, j))
            )
        elif found := tuple(comparison.differences(i, j)):
            place = comparison.place(after, j)
            change = _described("changed", after.nodes[j], place, found)
            follows = follows_sizes(before, after, i, j, found)
            changes.append(replace(change, follows=follows))
    changes += comparison.results()
    return tuple(sorted(changes, key=lambda change: natural_key(change.module)))


def _described(
    action: Action, node: Node, place: str, changes: tuple[AttributeChange, ...] = ()
) -> NodeChange:
    return NodeChange(action, node.op, place, node.line, changes)


class _Comparison:
    def __init__(
        self, before: ModelSummary, after: ModelSummary, matching: Matching
    ) -> None:
        self._before, self._after, self._matching = before, after, matching
        self._inputs = dict(match_ports(before.inputs, after.inputs))
        self._places: dict[bool, list[str]] = {}

    def differences(self, i: int, j: int) -> Iterator[AttributeChange]:
        """What a pair of nodes does not share."""
        old, new = self._before.nodes[i], self._after.nodes[j]
        yield from _attributes(dict(old.attributes), dict(new.attributes))
        types = [[t.dtype for t in node.outputs if t.dtype] for node in (old, new)]
        if types[0] != types[1] and all(types):
            yield AttributeChange("dtype", ", ".join(types[0]), ", ".join(types[1]))
        if not self._swapped(old, new):
            yield from self._operands(old.operands, new.operands, "operand")

    def place(self, summary: ModelSummary, index: int) -> str:
        """The node's module, else that of the nearest node above that has one.

        A tool that rewrote the graph may have dropped where its nodes came from; the
        node that a neighbour was before still knows.
        """
        is_before = summary is self._before
        if is_before not in self._places:
            self._places[is_before] = self._all_places(summary)
        return self._places[is_before][index]

    def _all_places(self, summary: ModelSummary) -> list[str]:
        """The place of every node, in one walk: operands come before their users."""
        nearest: list[tuple[float, str]] = []
        for index, node in enumerate(summary.nodes):
            name = node.display or node.scope or self._partner(summary, index)
            refs = [o.node for o in node.operands if isinstance(o, NodeRef)]
            above = [nearest[ref] for ref in refs if nearest[ref][1]]
            if name:
                nearest.append((0, name))
            elif above:
                steps, found = min(above, key=lambda place: place[0])
                nearest.append((steps + 1, found))
            else:
                nearest.append((0, ""))
        return [name for _, name in nearest]

    def _partner(self, summary: ModelSummary, index: int) -> str:
        partner = self._matching.before_of.get(index)
        if summary is self._before or partner is None:
            return ""
        return self._before.nodes[partner].display

    def results(self) -> list[NodeChange]:
        """Outputs that return another value than before."""
        changes = []
        for i, j in match_ports(self._before.outputs, self._after.outputs):
            old, new = self._before.results[i], self._after.results[j]
            found = tuple(self._operands((old,), (new,), "source"))
            if found:
                name = self._after.outputs[j].name
                changes.append(NodeChange("changed", "output", name, changes=found))
        return changes

    def _operands(
        self, old: tuple[Operand, ...], new: tuple[Operand, ...], word: str
    ) -> Iterator[AttributeChange]:
        for slot in range(max(len(old), len(new))):
            one = old[slot] if slot < len(old) else None
            two = new[slot] if slot < len(new) else None
            if not self._equal(one, two):
                texts = _text(one, self._before), _text(two, self._after)
                yield AttributeChange(f"{word} {slot}", *texts)

    def _swapped(self, old: Node, new: Node) -> bool:
        """The same operands of a commutative operator, the other way round."""
        name = old.op.rpartition("::")[2].rpartition(".")[2].lower()
        turned = new.operands[::-1]
        return (
            name in _COMMUTATIVE
            and len(old.operands) == len(turned) == 2
            and all(map(self._equal, old.operands, turned))
        )

    def _equal(self, old: Operand, new: Operand) -> bool:
        if isinstance(old, NodeRef) and isinstance(new, NodeRef):
            partner = self._matching.after_of.get(old.node)
            both_known = partner is not None and new.node in self._matching.before_of
            return not both_known or (partner, old.output) == (new.node, new.output)
        if isinstance(old, InputRef) and isinstance(new, InputRef):
            return self._inputs.get(old.index) == new.index
        if isinstance(old, ParameterRef) and isinstance(new, ParameterRef):
            return True  # compared as parameters
        if isinstance(old, NodeRef) and old.node not in self._matching.after_of:
            return True  # the removed node says it
        if isinstance(new, NodeRef) and new.node not in self._matching.before_of:
            return True  # the added node says it
        return old == new


def _attributes(
    old: Mapping[str, str], new: Mapping[str, str]
) -> Iterator[AttributeChange]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield AttributeChange(name, old.get(name, ""), new.get(name, ""))


def _text(operand: Operand, summary: ModelSummary) -> str:
    if isinstance(operand, NodeRef):
        node = summary.nodes[operand.node]
        return f"{node.op} in {node.display}" if node.display else node.op
    if isinstance(operand, InputRef):
        return f"input {summary.inputs[operand.index].name}"
    if isinstance(operand, ParameterRef):
        return operand.label or operand.key
    return operand.text if isinstance(operand, Constant) else "nothing"
