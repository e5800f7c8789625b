"""The query side of attention: gating it alone closes the dims that keys share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fgcompile.analysis.steps import Align, Array, Move, Slot
from fgcompile.gates.layout import Target, step_kind
from fgcompile.gates.readers import contracted_slots
from fgcompile.units import BoolArray

Marks = dict[tuple[int, int], BoolArray]
"""Elements of planes, by value and position of the plane."""


def query_side(target: Target) -> Target:
    """`target`, limited to units that make queries.

    A score is a sum of products of a query's and a key's dims: zero on one side is
    enough. Unchanged where a norm lies between, whose statistics see both sides.
    """
    if target.summarised:
        return target
    reached = np.zeros(target.place.size, bool)
    marks: Marks = {}
    for step in reversed(target.steps):
        if isinstance(step, Move):
            _follow_links(step, marks, target)
        elif isinstance(step, Align) and step_kind(step) == "contraction":
            _mark_makers(step, marks, reached, target)
            _mark_queries(step, marks, target)
        elif isinstance(step, Align):
            _follow_factors(step, marks, reached, target)
    if not reached.any():
        return target
    return replace(target, place=np.where(reached, target.place, -1))


def _mark_queries(step: Align, marks: Marks, target: Target) -> None:
    """The first operand of a product of two activations is the query."""
    for slot in contracted_slots(target, step):
        if slot.operand == 0:
            plane = target.flow.values[slot.value].planes[slot.plane]
            _add(marks, slot, target.index(plane) >= 0)


def _follow_links(step: Move, marks: Marks, target: Target) -> None:
    for link in step.links:
        found = marks.get((link.target, link.target_plane))
        if found is None:
            continue
        source = target.flow.values[link.source].planes[link.source_plane]
        flat = np.zeros(source.size, bool)
        flat[link.index[found & (link.index >= 0)]] = True
        key = (link.source, link.source_plane)
        mark = flat.reshape(source.shape)
        marks[key] = marks[key] | mark if key in marks else mark


def _follow_factors(
    step: Align, marks: Marks, reached: BoolArray, target: Target
) -> None:
    for slot, mark in _operand_marks(step, marks, target):
        _add(marks, slot, mark)
        value = target.flow.values[slot.value]
        if value.table:  # a bias that is added to the queries
            ids = value.planes[slot.plane][mark]
            reached[ids[ids >= 0]] = True


def _mark_makers(step: Align, marks: Marks, reached: BoolArray, target: Target) -> None:
    """Units of the weight and bias that a marked value was made with."""
    for slot, mark in _operand_marks(step, marks, target):
        if slot.axes[-1] not in step.contracted:
            ids = target.flow.values[slot.value].planes[slot.plane][mark]
            reached[ids[ids >= 0]] = True


def _operand_marks(
    step: Align, marks: Marks, target: Target
) -> list[tuple[Slot, BoolArray]]:
    """Elements of the operands' planes that lie beside marked ones of the result."""
    values = target.flow.values
    found = []
    for result in step.results:
        mark = marks.get((result.value, result.plane))
        if mark is None:
            continue
        spread = result.spread(mark)
        for slot in step.slots:
            if set(slot.axes) & set(result.axes):
                shape = values[slot.value].planes[slot.plane].shape
                found.append((slot, slot.collect(_onto(spread, slot), shape)))
    return found


def _onto(spread: Array, slot: Slot) -> BoolArray:
    """A mark over all factors, reduced to those along which the slot varies."""
    rest = tuple(k for k, size in enumerate(slot.full) if size == 1)
    reduced = spread.any(axis=rest, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(reduced, slot.full))


def _add(marks: Marks, slot: Slot, mark: BoolArray) -> None:
    key = (slot.value, slot.plane)
    marks[key] = marks[key] | mark if key in marks else mark
