"""Coupled groups of a pair of models, read off the dims whose size changed.

Where no analysis of the model is at hand (an ONNX file of unknown origin), two
graphs that differ in size say themselves what was coupled: a dim of a parameter
that shrank is followed through every operation, in both graphs, along dims that
shrank too, until the next parameter dim. What one walk connects is one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from networkx.utils import UnionFind

from fgcompile.report.dim_links import RESULT, Link, links_of
from fgcompile.report.matching import Matching
from fgcompile.report.pairs import Pairs, TensorPair
from fgcompile.report.summary import (
    InputRef,
    ModelSummary,
    NodeRef,
    ParameterRef,
)

Dim = tuple[str, int, int]
"""A stored tensor's pair number, or a value's shared number, and a dim."""


@dataclass(frozen=True)
class Split:
    """A reshape between entries and [units, inner] on the way of a group.

    `before` and `after` are the sizes of the unit dim; 0 where a value is in one of
    the two graphs only.
    """

    before: int
    after: int
    inner: int


@dataclass
class Component:
    """Parameter dims that changed together, and how they were connected."""

    members: list[tuple[TensorPair, int]] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)


def coupled_dims(
    before: ModelSummary, after: ModelSummary, matching: Matching, pairs: Pairs
) -> list[Component]:
    """Components of changed parameter dims, in the order of their first member."""
    return _Coupling(before, after, matching, pairs).components()


class _Coupling:
    def __init__(
        self,
        before: ModelSummary,
        after: ModelSummary,
        matching: Matching,
        pairs: Pairs,
    ) -> None:
        self._sides = before, after
        self._matching = matching
        self._pairs = pairs.pairs
        self._union: UnionFind[Dim] = UnionFind()
        self._splits: list[tuple[Dim, Split]] = []
        self._numbers: tuple[dict[tuple[str, str], int], ...] = ({}, {})
        for number, pair in enumerate(self._pairs):
            self._numbers[0].setdefault((pair.before, pair.old_label), number)
            self._numbers[1].setdefault((pair.after, pair.new_label), number)

    def components(self) -> list[Component]:
        for side in (0, 1):
            for index in range(len(self._sides[side].nodes)):
                self._follow(side, index)
        found: dict[Dim, Component] = {}
        for number, pair in enumerate(self._pairs):
            for dim in self._changed_dims(pair):
                root = self._union[("stored", number, dim)]
                component = found.setdefault(root, Component())
                component.members.append((pair, dim))
        for place, split in self._splits:
            if (root := self._union[place]) in found:
                found[root].splits.append(split)
        return list(found.values())

    def _changed_dims(self, pair: TensorPair) -> Iterator[int]:
        old = self._sides[0].parameters[pair.before].shape
        new = self._sides[1].parameters[pair.after].shape
        if len(old) == len(new):
            yield from (d for d in range(len(old)) if old[d] != new[d])

    def _follow(self, side: int, index: int) -> None:
        summary = self._sides[side]
        node = summary.nodes[index]
        for link in links_of(node, summary):
            first = self._changed(side, index, *link.first)
            second = self._changed(side, index, *link.second)
            if first is not None and second is not None:
                self._union.union(first, second)
                self._remember_split(side, index, link, first)

    def _remember_split(self, side: int, index: int, link: Link, dim: Dim) -> None:
        """Keep the sizes of the unit dim where a reshape splits off whole units."""
        if link.inner is None:
            return
        ends = [self._sizes(side, index, *end) for end in (link.first, link.second)]
        known = sorted(end for end in ends if end is not None)
        if len(known) == 2 and known[0] != known[1] and side == 0:
            self._splits.append((dim, Split(*known[0], link.inner)))
        elif not known:
            self._splits.append((dim, Split(0, 0, link.inner)))

    def _changed(self, side: int, index: int, place: int, dim: int) -> Dim | None:
        """The dim's key, if its size changed or it exists on one side only."""
        operand = self._operand(side, index, place)
        if isinstance(operand, ParameterRef):
            use = (operand.key, operand.label or operand.key)
            number = self._numbers[side].get(use)
            if number is None or dim not in self._changed_dims(self._pairs[number]):
                return None
            return ("stored", number, dim)
        if not isinstance(operand, NodeRef):
            return None
        sizes = self._value_sizes(side, operand, dim)
        if sizes is not None and sizes[0] == sizes[1]:
            return None
        return (self._shared(side, operand), operand.output, dim)

    def _sizes(
        self, side: int, index: int, place: int, dim: int
    ) -> tuple[int, int] | None:
        operand = self._operand(side, index, place)
        if isinstance(operand, NodeRef):
            return self._value_sizes(side, operand, dim)
        return None

    def _operand(
        self, side: int, index: int, place: int
    ) -> NodeRef | ParameterRef | InputRef | object:
        if place == RESULT:
            return NodeRef(index)
        return self._sides[side].nodes[index].operands[place]

    def _value_sizes(self, side: int, ref: NodeRef, dim: int) -> tuple[int, int] | None:
        """Size before and after; None where the value is on one side only."""
        maps: tuple[Mapping[int, int], Mapping[int, int]] = (
            self._matching.after_of,
            self._matching.before_of,
        )
        other = maps[side].get(ref.node)
        if other is None:
            return None
        nodes = (ref.node, other) if side == 0 else (other, ref.node)
        shapes = [_shape(self._sides[s], nodes[s], ref.output) for s in (0, 1)]
        if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
            return None
        return shapes[0][dim], shapes[1][dim]

    def _shared(self, side: int, ref: NodeRef) -> str:
        """A name that both graphs give to a value they share."""
        if side == 0:
            return f"before {ref.node}"
        before = self._matching.before_of.get(ref.node)
        return f"after {ref.node}" if before is None else f"before {before}"


def _shape(summary: ModelSummary, node: int, output: int) -> tuple[int, ...] | None:
    sizes = summary.nodes[node].sizes
    return sizes[output] if output < len(sizes) else None
