"""Units: the indices of parameter dims, and which of them must shrink together.

A *unit* is one index of one parameter dim (row 17 of `up.weight`), named by an
integer id. A *plane* is an integer array, broadcastable to a value's hidden
shape, that says which unit each element of the value belongs to; -1 where
nothing is known. Planes are plain numpy arrays; this module knows no graph.

Two relations hold between units:

- *coupled*: they shrink together (a row of `up` and a column of `down`);
- *parent*: closing the parent closes its children (a head and its dims).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

UnitIds = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Family:
    """The units of one parameter dim, or of a dim that no parameter has.

    `name` is the parameter, "" without one; ids are `start .. start + size`. `heads`
    tells units that stand for heads from those of a plane that several planes met in.
    """

    name: str
    dim: int
    size: int
    start: int
    heads: bool = False

    @property
    def ids(self) -> UnitIds:
        """Ids of this family's units, in the order of the dim."""
        return np.arange(self.start, self.start + self.size, dtype=np.int64)


@dataclass
class Units:
    """All units of a program, and the relations found between them."""

    families: list[Family] = field(default_factory=list)
    count: int = 0
    _left: list[UnitIds] = field(default_factory=list)
    _right: list[UnitIds] = field(default_factory=list)
    _children: list[UnitIds] = field(default_factory=list)
    _parents: list[UnitIds] = field(default_factory=list)
    pins: list[tuple[UnitIds, int]] = field(default_factory=list)

    def new_family(
        self, name: str, dim: int, size: int, *, heads: bool = False
    ) -> Family:
        """A family of `size` new units."""
        family = Family(name, dim, size, self.count, heads)
        self.families.append(family)
        self.count += size
        return family

    def is_head(self, ids: UnitIds) -> bool:
        """Whether a plane holds units that stand for heads."""
        known = ids[ids >= 0]
        if not known.size:
            return False
        first = int(known.flat[0])
        at = bisect_right(self.families, first, key=lambda family: family.start) - 1
        return self.families[at].heads

    def nest(self, outer: UnitIds, inner: UnitIds) -> UnitIds:
        """A plane of new units, each made of one of `outer` and one of `inner`.

        A column that reads dim `e` of head `h`, where all heads share their values,
        goes with either: it is coupled with `e`, and `h` is its parent.
        """
        outer, inner = np.broadcast_arrays(outer, inner)
        ids = self.new_family("", 0, outer.size).ids.reshape(outer.shape)
        self.couple(ids, inner)
        self.set_parent(ids, outer)
        return ids

    def repeat(self, ids: UnitIds, shape: tuple[int, ...]) -> UnitIds:
        """A plane of new units of that shape, coupled with what is repeated."""
        new = self.new_family("", 0, prod(shape)).ids.reshape(shape)
        self.couple(new, ids)
        return new

    def couple(self, left: UnitIds, right: UnitIds) -> None:
        """Couple the units of two broadcastable planes element by element."""
        left, right = _distinct_pairs(left, right)
        if left.size:
            self._left.append(left)
            self._right.append(right)

    def set_parent(self, children: UnitIds, parents: UnitIds) -> None:
        """Make each element of `parents` the parent of the child beside it."""
        children, parents = _distinct_pairs(children, parents)
        if children.size:
            self._children.append(children)
            self._parents.append(parents)

    def pin(self, ids: UnitIds, reason: int) -> None:
        """Record that `ids` may not shrink; `reason` indexes the caller's list."""
        known = np.unique(ids[ids >= 0])
        if known.size:
            self.pins.append((known, reason))

    def classes(self) -> UnitIds:
        """Label [count] of the coupled class of every unit.

        Parents of one child are coupled with each other: under grouped-query
        attention all query heads that read one key/value head form one unit.
        """
        left, right = [*self._left], [*self._right]
        child, parent = self.parents()
        if child.size:
            order = np.argsort(child, kind="stable")
            child, parent = child[order], parent[order]
            same = child[1:] == child[:-1]
            left.append(parent[1:][same])
            right.append(parent[:-1][same])
        return connected_labels(_concatenate(left), _concatenate(right), self.count)

    def couplings(self) -> tuple[UnitIds, UnitIds]:
        """All pairs of unit ids that were coupled, as they were found."""
        return _concatenate(self._left), _concatenate(self._right)

    def parents(self) -> tuple[UnitIds, UnitIds]:
        """All (child, parent) pairs of unit ids."""
        return _concatenate(self._children), _concatenate(self._parents)


def _distinct_pairs(left: UnitIds, right: UnitIds) -> tuple[UnitIds, UnitIds]:
    left, right = np.broadcast_arrays(left, right)
    left, right = left.ravel(), right.ravel()
    mask = (left >= 0) & (right >= 0) & (left != right)
    return left[mask], right[mask]


def _concatenate(parts: list[UnitIds]) -> UnitIds:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def connected_labels(left: UnitIds, right: UnitIds, count: int) -> UnitIds:
    """Label [count] of the connected component of every unit; pairs are the edges."""
    if count == 0:
        return np.empty(0, np.int64)
    ones = np.ones(left.size, np.int8)
    graph = coo_matrix((ones, (left, right)), shape=(count, count))
    labels: UnitIds = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels
