"""Coupled classes of units: which head owns a unit, and why a class may not shrink.

A class is a connected component of coupled units; closing one means closing all of
its units. A head is a class without parameters of its own, or with few (a column of a
bias table): what it owns are its children, the rows and columns inside the head.

Ownership is finer than coupling. Rotary embedding and norms over the dims of a head
couple dim 3 of every head, and still each head owns its own rows:

(1) A unit with a parent is owned by the parent's class.
(2) A unit coupled only with units of one owner (the bias beside a row, the column
    that reads it) is owned by it too.
(3) A unit between several owners (a norm's weight that all heads share) belongs to
    all: it goes when all of them go. So does a column of a bias table that several
    layers read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fgcompile.analysis.steps import Align, Flow, Slot
from fgcompile.units import BoolArray, UnitIds, Units, connected_labels


@dataclass
class Classes:
    """The coupled classes of a flow.

    Attributes:
        labels: Class of each unit.
        count: Number of classes.
        family: Index of the family of each unit.
        first: Smallest id in each class among units of parameters, else of all.
        heads: Classes that own others.
        owner: Head class that owns each unit, -1 where none or several do.
        shared: (unit, head class) pairs of units with several owners.
        pins: (classes, reason) in the order in which the reasons were found.
    """

    labels: UnitIds
    count: int
    family: UnitIds
    first: UnitIds
    heads: BoolArray
    owner: UnitIds
    shared: tuple[UnitIds, UnitIds]
    pins: list[tuple[UnitIds, int]] = field(default_factory=list)

    def mark(self, ids: UnitIds) -> BoolArray:
        """Flag [count] of the classes that have a unit in `ids`."""
        flags = np.zeros(self.count, bool)
        flags[self.labels[ids[ids >= 0]]] = True
        return flags


def classes_of(flow: Flow, inside: BoolArray, headed: BoolArray) -> Classes:
    """The coupled classes of `flow`.

    A class is a head if it stands for heads that no parameter has, if it is the parent
    of a unit that is `inside`, or if it has a unit that is `headed`.

    Args:
        flow: The steps of a program.
        inside: Flag per unit: whether attention contracts it, or passes it on.
        headed: Flag per unit: whether attention runs once for each such unit.
    """
    units = flow.units
    labels = units.classes()
    count = int(labels.max()) + 1 if labels.size else 0
    sizes = [f.size for f in units.families]
    family = np.repeat(np.arange(len(sizes)), sizes)
    heads = np.zeros(count, bool)
    for one in units.families:
        if one.heads:
            heads[labels[one.ids]] = True
    child, parent = units.parents()
    heads[labels[parent[inside[child]]]] = True
    heads[labels[headed]] = True
    owner, shared = _owners(units, labels, heads)
    tables = _table_owners(flow, labels, heads, owner)
    shared = (
        np.concatenate([shared[0], tables[0]]),
        np.concatenate([shared[1], tables[1]]),
    )
    found = Classes(
        labels, count, family, _first(units, labels, count), heads, owner, shared
    )
    _add_pins(flow, found)
    return found


def unit_signatures(classes: Classes, families: int) -> NDArray[np.uint64]:
    """A number per class, equal for classes with as many units in each family."""
    hashes = np.random.default_rng(0).integers(1, 2**63, families, dtype=np.uint64)
    signatures = np.zeros(classes.count, np.uint64)
    # Sums wrap around, so the order of the units does not matter.
    np.add.at(signatures, classes.labels, hashes[classes.family])
    return signatures


def _first(units: Units, labels: UnitIds, count: int) -> UnitIds:
    first = np.full(count, units.count, np.int64)
    np.minimum.at(first, labels, np.arange(units.count))
    named = np.full(count, units.count, np.int64)
    for family in units.families:
        if family.name:
            np.minimum.at(named, labels[family.ids], family.ids)
    return np.where(named < units.count, named, first)


def _owners(
    units: Units, labels: UnitIds, heads: BoolArray
) -> tuple[UnitIds, tuple[UnitIds, UnitIds]]:
    """Rules (1) to (3)."""
    owner = np.full(units.count, -1, np.int64)
    child, parent = units.parents()
    of_head = heads[labels[parent]] & ~heads[labels[child]]
    owner[child[of_head]] = labels[parent[of_head]]  # (1)
    direct = owner >= 0
    left, right = _inside_heads(units, labels, owner)
    inner = ~direct[left] & ~direct[right]
    parts = connected_labels(left[inner], right[inner], units.count)
    part, head = _borders(left, right, direct, parts, owner)
    single = np.bincount(part, minlength=units.count) == 1
    alone = single[part]
    of_part = np.full(units.count, -1, np.int64)
    of_part[part[alone]] = head[alone]
    owner = np.where(direct, owner, of_part[parts])  # (2)
    return owner, _shared(parts, part[~alone], head[~alone], direct)  # (3)


def _inside_heads(
    units: Units, labels: UnitIds, owner: UnitIds
) -> tuple[UnitIds, UnitIds]:
    """Couplings in classes that have a unit with an owner."""
    owned = np.zeros(int(labels.max(initial=-1)) + 1, bool)
    owned[labels[owner >= 0]] = True
    left, right = units.couplings()
    relevant = owned[labels[left]]
    return left[relevant], right[relevant]


def _borders(
    left: UnitIds, right: UnitIds, direct: BoolArray, parts: UnitIds, owner: UnitIds
) -> tuple[UnitIds, UnitIds]:
    """Distinct (part, head class) pairs: parts that touch a unit which a head owns."""
    pairs = []
    for outer, owned in ((left, right), (right, left)):
        mask = ~direct[outer] & direct[owned]
        pairs.append((parts[outer[mask]] << _SHIFT) + owner[owned[mask]])
    distinct = np.unique(np.concatenate(pairs))
    return distinct >> _SHIFT, distinct & _MASK


def _shared(
    parts: UnitIds, part: UnitIds, head: UnitIds, direct: BoolArray
) -> tuple[UnitIds, UnitIds]:
    members = np.flatnonzero(np.isin(parts, part) & ~direct)
    order = np.argsort(part, kind="stable")
    part, head = part[order], head[order]
    start = np.searchsorted(part, parts[members], side="left")
    stop = np.searchsorted(part, parts[members], side="right")
    repeats = stop - start
    offsets = np.arange(int(repeats.sum())) - np.repeat(
        np.cumsum(repeats) - repeats, repeats
    )
    return np.repeat(members, repeats), head[np.repeat(start, repeats) + offsets]


def _table_owners(
    flow: Flow, labels: UnitIds, heads: BoolArray, owner: UnitIds
) -> tuple[UnitIds, UnitIds]:
    """(unit, head class) pairs of tables that steps read without coupling them."""
    head = np.where(heads[labels], labels, owner)
    pairs = [np.empty(0, np.int64)]
    for step in flow.steps:
        slots = step.slots if isinstance(step, Align) else []
        for table in (slot for slot in slots if slot.loose):
            pairs += [
                _beside(flow, table, slot, head)
                for slot in slots
                if not slot.loose and table.axes[-1] in slot.axes
            ]
    distinct = np.unique(np.concatenate(pairs))
    return distinct >> _SHIFT, distinct & _MASK


def _beside(flow: Flow, table: Slot, slot: Slot, head: UnitIds) -> UnitIds:
    """Each unit of a table with the head of the unit beside it, as one number."""
    units, other = np.broadcast_arrays(
        *(s.spread(flow.values[s.value].planes[s.plane]) for s in (table, slot))
    )
    heads = np.where(other >= 0, head[other], -1)
    known = (units >= 0) & (heads >= 0)
    return (units[known] << _SHIFT) + heads[known]


_SHIFT = 32
_MASK = (1 << _SHIFT) - 1


def _add_pins(flow: Flow, classes: Classes) -> None:
    """A head may not close if something inside it may not shrink."""
    for ids, reason in flow.units.pins:
        owners = classes.owner[ids]
        touched = [classes.labels[ids], owners[owners >= 0]]
        classes.pins.append((np.unique(np.concatenate(touched)), reason))
