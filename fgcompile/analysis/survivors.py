"""Survivors: the least set of units that contains all needs and still has shapes.

Tensors are rectangular, so needs alone do not do. `close_survivors` revives
units until every step's shapes fit; what it revives is not needed, so its
values do not matter, and results stay exact. Rules, for each step:

(1) Along an axis, planes whose innermost axis it is keep the same units, repeated
    over outer axes that one of them lacks.
(2) Where an axis is outer in a plane, each survivor keeps at least one unit there.
(3) An operand without planes must have one index for all: it can be gathered, also
    with other indices for each outer unit; a loose operand must only be wider.
(4) Movement keeps an element exactly if it keeps its origin: each of them, where
    planes met. What is repeated goes where all beside it goes.
(5) In a plane over several dims, or over a compound one (channels of a grouped
    convolution), rows that survive have equally many units; which
    ones may differ from row to row. Units that are coupled within a row, such as the
    pairs of a rotary embedding, are revived together where they fit.
(6) No plane is empty. What nothing needs follows what stands beside it; only where
    that is empty too does a first unit stay.
(7) A factor that an operator reads as a whole is whole while the operator is there: an
    index that is data must find its row, even if nothing sees the result. So is a
    plane that cannot follow an operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fgcompile.analysis.needs import Needs
from fgcompile.analysis.steps import Align, Array, Flow, Link, Move, Pin, Slot


@dataclass
class Survivors:
    """`planes[value][plane]`: mask of kept units, of the plane's shape."""

    planes: list[list[Array]]

    def size(self, value: int, plane: int) -> tuple[int, ...]:
        """Shape of the plane that survives, 1 where it is uniform."""
        mask = self.planes[value][plane]
        sizes, rows = [], 1
        for dim in range(mask.ndim):
            inner = tuple(range(dim + 1, mask.ndim))
            alive = _any(mask, inner)
            count = int(np.count_nonzero(alive))
            sizes.append(count // rows if rows else 0)
            rows = count
        return tuple(sizes)

    def positions(self, value: int, plane: int) -> Array:
        """Flat positions of the kept units, in the shape that survives."""
        mask = self.planes[value][plane]
        return np.flatnonzero(mask).reshape(self.size(value, plane))

    @property
    def removed(self) -> bool:
        """Whether any unit goes."""
        return any(not p.all() for planes in self.planes for p in planes)


def close_survivors(
    flow: Flow, needs: Needs, revived: Needs | None = None
) -> Survivors:
    """Survivors of `flow`, given what is needed, and what else must be revived."""
    planes = [[p.copy() for p in planes] for planes in needs.planes]
    if revived is not None:
        for mine, other in zip(planes, revived.planes, strict=True):
            for p, q in zip(mine, other, strict=True):
                p |= q
    survivors = Survivors(planes)
    labels = np.append(flow.units.classes(), -1)
    for masks, value in zip(planes, flow.values, strict=True):
        for mask, ids in zip(masks, value.planes, strict=True):
            mask |= ids < 0
    for v, plane in _stuck(flow):
        planes[v][plane][...] = True
    dirty = set(range(len(planes)))
    readers = _readers(flow)
    while dirty:
        while dirty:
            dirty = _sweep(flow, survivors, labels, readers, dirty)
        dirty = _seed(planes)
    return survivors


def _seed(planes: list[list[Array]]) -> set[int]:
    """Rule (6): a unit for the first value that would lose all; its index, if any."""
    for v, masks in enumerate(planes):
        empty = [mask for mask in masks if mask.size and not mask.any()]
        for mask in empty:
            mask.reshape(-1)[0] = True
        if empty:
            return {v}
    return set()


def _stuck(flow: Flow) -> Iterator[tuple[int, int]]:
    """Rule (7): planes, as (value, plane), of which some step cannot say anything."""
    for step in flow.steps:
        if step.node.op == "output":
            continue
        for position, v in enumerate(step.operands):
            followed: set[int] = set()
            if isinstance(step, Move):
                followed = {k.source_plane for k in step.links if k.source == v}
            elif isinstance(step, Align):
                followed = {s.plane for s in step.slots if s.operand == position}
            if v is not None:
                for plane in set(range(len(flow.values[v].planes))) - followed:
                    if isinstance(step, Pin) or (v, plane) not in step.beside:
                        yield v, plane


def _readers(flow: Flow) -> list[list[int]]:
    readers: list[list[int]] = [[] for _ in flow.values]
    for k, step in enumerate(flow.steps):
        values = {v for v in (*step.operands, *step.outputs) if v is not None}
        for v in values:
            readers[v].append(k)
    return readers


def _sweep(
    flow: Flow,
    survivors: Survivors,
    labels: Array,
    readers: list[list[int]],
    dirty: set[int],
) -> set[int]:
    """One round over all steps that touch a dirty value; the values that grew."""
    for v in dirty:
        for mask, ids in zip(survivors.planes[v], flow.values[v].planes, strict=True):
            _make_rectangular(mask, labels[ids])
    grown: set[int] = set()
    for k in sorted({k for v in dirty for k in readers[v]}):
        step = flow.steps[k]
        if isinstance(step, Move):
            grown |= _move(step, survivors)
        elif isinstance(step, Align):
            grown |= align_survivors(flow, step, survivors, labels)
    return grown


def _move(step: Move, survivors: Survivors) -> set[int]:
    """Rule (4)."""
    grown = set()
    for (value, plane), links in _by_target(step).items():
        target = survivors.planes[value][plane]
        kept = np.ones(target.shape, bool)
        for link in links:
            source = survivors.planes[link.source][link.source_plane]
            mine = source.reshape(-1)[link.index]
            if link.repeats:
                mine = mine & _rows(target, link.repeats)
            kept &= (link.index < 0) | mine
        if (kept & ~target).any():
            target |= kept
            grown.add(value)
        for link in links:
            source = survivors.planes[link.source][link.source_plane]
            here = link.index >= 0
            origin = link.index[here]
            if (target[here] & ~source.reshape(-1)[origin]).any():
                source.reshape(-1)[origin[target[here]]] = True
                grown.add(link.source)
    return grown


def _rows(mask: Array, dims: tuple[int, ...]) -> Array:
    """Where anything survives, along `dims` alone."""
    return _any(mask, tuple(d for d in range(mask.ndim) if d not in dims))


def _by_target(step: Move) -> dict[tuple[int, int], list[Link]]:
    """The links of a step by the plane that they lead to, as (value, plane)."""
    found: dict[tuple[int, int], list[Link]] = {}
    for link in step.links:
        found.setdefault((link.target, link.target_plane), []).append(link)
    return found


def align_survivors(
    flow: Flow, step: Align, survivors: Survivors, labels: Array
) -> set[int]:
    """Rules (1), (2), (3) and (5) for one step; the values that grew."""
    slots = [s for s in (*step.slots, *step.results) if s.axes]
    masks = [survivors.planes[s.value][s.plane] for s in slots]
    if all(m.all() for m in masks):
        return set()
    grown = set()
    kept = required(step, survivors)
    for slot, mask in zip(slots, masks, strict=True):
        wide = slot.spread(mask)
        wanted = _whole(step, slot, _fit(slot, wide, kept))
        if len(slot.axes) > sum(n > 1 for n in mask.shape):
            # A compound dim: what the plane shows as one dim is rows of groups.
            ids = flow.values[slot.value].planes[slot.plane]
            wanted = wanted.copy()
            _make_rectangular(wanted, slot.spread(labels[ids]))
        if (wanted & ~wide).any():
            mask |= slot.collect(wanted, mask.shape)
            grown.add(slot.value)
    return grown


def required(step: Align, survivors: Survivors) -> dict[int, Array]:
    """For each axis: what survives of it, over the axis and its outer axes."""
    strict = [s for s in (*step.slots, *step.results) if s.axes and not s.loose]
    wide = [s.spread(survivors.planes[s.value][s.plane]) for s in strict]
    kept: dict[int, Array] = {}
    for axis in sorted({a for s in strict for a in s.axes}):
        outer = {a for s in strict if axis in s.axes for a in s.axes if a < axis}
        total: Array | None = None
        for slot, mask in zip(strict, wide, strict=True):
            if axis not in slot.axes:
                continue
            inner = tuple(a for a in slot.axes if a > axis)
            part = _any(mask, inner)
            for missing in outer - set(slot.axes):
                part = part & kept[missing]
            total = part if total is None else total | part
        assert total is not None
        kept[axis] = total
    return kept


def _fit(slot: Slot, mask: Array, kept: dict[int, Array]) -> Array:
    """`mask`, grown to what `kept` requires of the slot's axes."""
    for axis in slot.axes:
        if axis not in kept:
            continue
        need: Array = kept[axis]
        extra = tuple(
            k for k, n in enumerate(need.shape) if n > 1 and slot.full[k] == 1
        )
        need = _any(need, extra)
        if axis == slot.axes[-1]:
            mask = mask | np.broadcast_to(need, mask.shape)
            continue
        inner = tuple(a for a in slot.axes if a > axis)
        missing = need & ~_any(mask, inner)
        if missing.any():
            outer = tuple(a for a in slot.axes if a <= axis)
            pattern = _any(mask, outer)
            mask = mask | (missing & pattern)
    return mask


def _whole(step: Align, slot: Slot, mask: Array) -> Array:
    """Rule (7)."""
    axes = tuple(a for a in slot.axes if a in step.pinned)
    return mask | _any(mask, axes) if axes else mask


def _any(mask: Array, axes: tuple[int, ...]) -> Array:
    """`mask.any` over `axes`, which stay as dims of size 1."""
    return np.asarray(mask.any(axis=axes, keepdims=True)) if axes else mask


def _make_rectangular(mask: Array, labels: Array) -> None:
    """Rule (5), in place: revive the fewest units, the most popular ones first.

    `labels` are the coupled classes of the plane's units.
    """
    dims = [k for k, n in enumerate(mask.shape) if n > 1]
    if len(dims) > 1 and not mask.all():
        shape = tuple(mask.shape[k] for k in dims)
        whole = _rectangular(mask.reshape(shape), labels.reshape(shape))
        mask |= whole.reshape(mask.shape)


def _rectangular(mask: Array, labels: Array) -> Array:
    if mask.ndim == 1:
        return mask
    rows = mask.reshape(-1, mask.shape[-1]).copy()
    classes = labels.reshape(rows.shape)
    _fill_rows(rows, classes)
    some: Array = np.asarray(rows.any(axis=1))
    outer = mask.shape[:-1]
    alive = _rectangular(some.reshape(outer), classes[:, 0].reshape(outer)).reshape(-1)
    new = alive & ~rows.any(axis=1)
    if new.any():
        width = int(rows.sum(axis=1).max())
        for row in np.flatnonzero(new):
            rows[row, _chosen(_popular(rows), classes[row], width)] = True
    return rows.reshape(mask.shape)


def _fill_rows(rows: Array, classes: Array) -> None:
    counts = rows.sum(axis=1)
    width = int(counts.max())
    popular = _popular(rows)
    for row in np.flatnonzero((counts > 0) & (counts < width)):
        dead = popular[~rows[row, popular]]
        rows[row, _chosen(dead, classes[row], width - int(counts[row]))] = True


def _chosen(candidates: Array, classes: Array, count: int) -> list[int]:
    """The first `count` candidates; coupled ones together, as long as they fit."""
    groups: dict[int, list[int]] = {}
    for candidate in candidates.tolist():
        groups.setdefault(int(classes[candidate]), []).append(candidate)
    chosen: list[int] = []
    for coupled in groups.values():
        if len(chosen) + len(coupled) <= count:
            chosen += coupled
    rest = candidates[~np.isin(candidates, chosen)].tolist()
    return chosen + rest[: count - len(chosen)]


def _popular(rows: Array) -> Array:
    order: Array = np.argsort(-rows.sum(axis=0), kind="stable")
    return order
