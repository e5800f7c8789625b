"""The proof of a rewrite: every element comes from the unit that survived there.

The rewritten graph is run on planes. Its units are new ones, but those of parameters
are known to be what is left of old ones; from these follow the others:

(1) A head is the parent of what it owns.
(2) Any other unit is of the class of one that it is coupled with.
"""

from __future__ import annotations

import numpy as np

from fgcompile.analysis.flow import trace_planes
from fgcompile.analysis.steps import Array, Flow
from fgcompile.analysis.survivors import Survivors
from fgcompile.passes.shrinkage import Shrinkage
from fgcompile.units import UnitIds


def first_difference(shrinkage: Shrinkage) -> str | None:
    """Name of the first node with an element that comes from elsewhere, or None."""
    flow, survivors = shrinkage.flow, shrinkage.survivors
    after = trace_planes(shrinkage.program)
    labels = np.append(flow.units.classes(), -1)
    heads = _head_of_each(flow, labels)
    own, head = _classes(after, _origins(flow, survivors, after), labels, heads)
    for node, values in after.of.items():
        old = shrinkage.values.get(node.name, ())
        for index, found in zip(old, values, strict=False):
            if index is None or found is None:
                continue
            planes = _expected(flow, survivors, index)
            expected = [(labels[p], heads[p]) for p in planes]
            actual = [(own[p], head[p]) for p in after.values[found].planes]
            if not _agree(expected, actual):
                return node.name
            shape = after.values[found].shape
            if 0 not in shape and shape != shrinkage.sizes(index):
                return node.name
    return None


def _head_of_each(flow: Flow, labels: Array) -> Array:
    """Class of the head that owns each unit, -1 where none does."""
    heads = np.full(flow.units.count + 1, -1, np.int64)
    child, parent = flow.units.parents()
    heads[child] = labels[parent]
    return heads


def _origins(flow: Flow, survivors: Survivors, after: Flow) -> Array:
    """Old unit of every new one; -1 where it is no parameter's."""
    origin = np.full(after.units.count + 1, -1, np.int64)
    for name, index in after.parameters.items():
        old = flow.parameters.get(name)
        if old is None:
            continue
        for plane, ids in enumerate(flow.values[old].planes):
            dim = max(range(ids.ndim), key=lambda k: ids.shape[k])
            keep = survivors.positions(old, plane).reshape(-1)
            for new in after.values[index].planes:
                if new.shape[dim] > 1:
                    origin[new.reshape(-1)] = ids.reshape(-1)[keep]
    return origin


def _classes(
    after: Flow, origin: Array, labels: Array, heads: Array
) -> tuple[Array, Array]:
    """Old class of every new unit, and of the head that owns it; -1 if unknown."""
    own, head = labels[origin], heads[origin]
    child, parent = after.units.parents()
    _fill(own, parent, head[child])  # (1)
    one, other = after.units.couplings()
    for left, right in ((one, other), (other, one)):
        _fill(own, left, own[right])  # (2)
    _fill(head, child, own[parent])
    return own, head


def _fill(known: Array, units: UnitIds, found: Array) -> None:
    """Sets `known[units]` to `found` where only that is known."""
    new = (known[units] < 0) & (found >= 0)
    known[units[new]] = found[new]


def _expected(flow: Flow, survivors: Survivors, index: int) -> list[Array]:
    planes = flow.values[index].planes
    return [
        ids.reshape(-1)[survivors.positions(index, k)] for k, ids in enumerate(planes)
    ]


def _agree(
    expected: list[tuple[Array, Array]], actual: list[tuple[Array, Array]]
) -> bool:
    """Whether the planes say the same of every element, as far as both speak.

    Compared by coupled class: which of two coupled operands an elementwise operator's
    plane names is arbitrary. Where one unit of each head is left, it may stand for
    the head. A plane along fewer dims may name the head alone: that of queries, where
    the one key-value head that is left has no dim to vary along.
    """
    for plane, head in expected:
        varying = {k for k, n in enumerate(plane.shape) if n > 1}
        heads = np.where(head >= 0, head, plane)
        single = np.unique(heads).size == heads.size
        for found, owner in actual:
            dims = {k for k, n in enumerate(found.shape) if n > 1}
            if varying & dims:
                same = plane == found
                if dims < varying:
                    same = same | ((owner < 0) & (heads == found))
                if single:
                    same = same | (heads == np.where(owner >= 0, owner, found))
                if ((plane >= 0) & (found >= 0) & ~same).any():
                    return False
    return True
