"""Names for structures: equal surroundings get equal numbers, in both graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from fgcompile.report.ports import canonical_order
from fgcompile.report.summary import (
    Constant,
    InputRef,
    ModelSummary,
    Node,
    NodeRef,
    ParameterRef,
)


class View:
    """One graph with its users and its canonical order."""

    def __init__(self, summary: ModelSummary, inputs: dict[int, str]) -> None:
        self.nodes = summary.nodes
        self.inputs = inputs
        self.modules = {node.module for node in self.nodes}
        self.users: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        self.returns: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for slot, operand in enumerate(node.operands):
                if isinstance(operand, NodeRef):
                    self.users[operand.node].append((index, slot))
        for position, result in enumerate(summary.results):
            if isinstance(result, NodeRef):
                self.returns[result.node].append(position)
        self.order = canonical_order(summary)


class Colours:
    """Numbers for structures: equal structures get equal numbers, in both graphs."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def number(self, structure: Hashable) -> int:
        return self._numbers.setdefault(structure, len(self._numbers))

    def upwards(self, view: View, label: Callable[[Node], Hashable]) -> list[int]:
        """A number for each node's operands, all the way to the inputs."""
        colours: list[int] = []
        for node in view.nodes:
            operands = tuple(_operand_key(o, colours, view) for o in node.operands)
            colours.append(self.number(("up", label(node), operands)))
        return colours

    def downwards(self, view: View, label: Callable[[Node], Hashable]) -> list[int]:
        """A number for each node's users, all the way to the outputs."""
        colours = [0] * len(view.nodes)
        for index in reversed(range(len(view.nodes))):
            readers = sorted((colours[user], slot) for user, slot in view.users[index])
            structure = (
                label(view.nodes[index]),
                tuple(readers),
                tuple(view.returns[index]),
            )
            colours[index] = self.number(("down", structure))
        return colours

    def both_ways(self, view: View, label: Callable[[Node], Hashable]) -> list[int]:
        up, down = self.upwards(view, label), self.downwards(view, label)
        return [self.number(pair) for pair in zip(up, down, strict=True)]

    def within(self, view: View, steps: int) -> list[int]:
        """A number for each node's surroundings within `steps` edges."""
        colours = [
            self.number(("near", node.op, node.scope, node.module))
            for node in view.nodes
        ]
        for _ in range(steps):
            colours = [
                self.number(
                    (
                        colours[index],
                        tuple(_operand_key(o, colours, view) for o in node.operands),
                        tuple(sorted((colours[u], s) for u, s in view.users[index])),
                    )
                )
                for index, node in enumerate(view.nodes)
            ]
        return colours


def _operand_key(operand: object, colours: Sequence[int], view: View) -> Hashable:
    if isinstance(operand, NodeRef):
        return (colours[operand.node], operand.output)
    if isinstance(operand, InputRef):
        return ("input", view.inputs.get(operand.index, "own"))
    if isinstance(operand, (ParameterRef, Constant)):
        return "stored"
    return None
