"""Needs backward: which units some reader can see.

Rules:
(1) Unknown operators see everything; outputs everything but constants, which the
    lowering can put back.
(2) An element sees what it is made of, except
(3) what a zero hides: the other factors of a product, in a contraction index by
    index;
(4) zeros in sums and statistics, which may leave (the lowering repairs the count).
(5) A factor that an operator reads as a whole is seen whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fgcompile.analysis.facts import Constants, components, product_operands
from fgcompile.analysis.steps import Align, Array, Flow, Move, Pin, Slot


@dataclass
class Needs:
    """`planes[value][plane]`: seen units; `values[value]`: seen at all."""

    planes: list[list[Array]]
    values: list[bool]


def propagate_needs(flow: Flow, constants: Constants) -> Needs:
    """Needs of every value of the program that `flow` and `constants` describe."""
    needs = Needs(
        [[np.zeros(p.shape, bool) for p in value.planes] for value in flow.values],
        [False] * len(flow.values),
    )
    for step in reversed(flow.steps):
        if isinstance(step, Pin):
            _pin(step, constants, needs)
        elif isinstance(step, Move):
            _move(step, needs)
        else:
            _align(step, constants, needs)
    return needs


def _pin(step: Pin, constants: Constants, needs: Needs) -> None:
    """Rule (1)."""
    for v in step.operands:
        _see(needs, v)
        for plane, known in zip(needs.planes[v], constants.planes[v], strict=True):
            if step.node.op == "output" and sum(n > 1 for n in plane.shape) == 1:
                plane |= np.isnan(known)
            else:
                plane[...] = True


def _move(step: Move, needs: Needs) -> None:
    """Rule (2)."""
    if not any(needs.values[v] for v in step.outputs):
        return
    for link in step.links:
        if needs.values[link.target]:
            seen = needs.planes[link.target][link.target_plane] & (link.index >= 0)
            source = needs.planes[link.source][link.source_plane]
            source.reshape(-1)[link.index[seen]] = True
    for v in step.operands:
        linked = {link.source_plane for link in step.links if link.source == v}
        planes = list(enumerate(needs.planes[v]))
        if all(p.any() for k, p in planes if k in linked and p.size > 1):
            _see(needs, v)
            for k, plane in planes:
                # A plane that could not follow is read as a whole.
                plane[...] |= k not in linked and (v, k) not in step.beside


def _see(needs: Needs, value: int) -> None:
    """The value is seen; so is the only unit of a plane that has just one."""
    needs.values[value] = True
    for plane in needs.planes[value]:
        if plane.size == 1:
            plane[...] = True


def _align(step: Align, constants: Constants, needs: Needs) -> None:
    if not any(needs.values[v] for v in step.outputs):
        return
    found: dict[int, list[tuple[Slot, Array]]] = {}
    hidden: set[int] = set()
    for component in components(step):
        wanted = _wanted(step, needs, component)
        for position, value in enumerate(step.operands):
            if value is None:
                continue
            seen = _read(step, wanted, position)
            seen = seen & ~_hidden(step, constants, component, position)
            if not seen.any():
                hidden.add(position)
            for slot in step.slots:
                if slot.operand == position and _inside(slot, component):
                    found.setdefault(position, []).append((slot, _project(seen, slot)))
    for position, value in enumerate(step.operands):
        if (
            value is None
            or position in hidden
            or _whole_hidden(step, constants, position)
        ):
            continue
        _see(needs, value)
        for slot, seen in found.get(position, []):
            plane = needs.planes[slot.value][slot.plane]
            plane |= slot.collect(_whole_pinned(step, slot, seen), plane.shape)
        _unslotted(step, needs, position, value)


def _wanted(step: Align, needs: Needs, component: tuple[int, ...]) -> Array:
    """What the outputs' readers see, over the axes of `component`."""
    shape = tuple(n if k in component else 1 for k, n in enumerate(step.sizes))
    wanted = np.zeros(shape, bool)
    results = [r for r in step.results if _inside(r, component)]
    if not results:
        return np.ones(shape, bool)
    for result in results:
        if needs.values[result.value]:
            wanted |= result.spread(needs.planes[result.value][result.plane])
    return wanted


def _read(step: Align, wanted: Array, position: int) -> Array:
    """Statistics read every index of their factors for each one that is seen."""
    if step.rule.kind != "normalization" or position != 0:
        return wanted
    over = tuple(
        k
        for k, n in enumerate(wanted.shape)
        if n > 1 and step.factors[k] in step.rule.statistics
    )
    return np.broadcast_to(wanted.any(axis=over, keepdims=True), wanted.shape)


def _hidden(
    step: Align, constants: Constants, component: tuple[int, ...], position: int
) -> Array:
    """Rules (3) and (4): where the operand at `position` cannot be seen."""
    shape = tuple(n if k in component else 1 for k, n in enumerate(step.sizes))
    hidden = np.zeros(shape, bool)
    kind = step.rule.kind
    hiding: list[int] = []
    if kind == "contraction" and position in product_operands(step):
        hiding = product_operands(step)
    elif kind == "pointwise":
        hiding = [k for k in step.rule.annihilators if k != position]
    elif kind in ("reduction", "normalization") and position == 0:
        hiding = [0] if _sums(step, component) else []
    for slot in step.slots:
        if slot.operand in hiding and _inside(slot, component):
            hidden |= constants.is_zero(slot)
    return hidden


def _sums(step: Align, component: tuple[int, ...]) -> bool:
    """Whether the step sums, or takes statistics, along an axis of `component`."""
    if step.rule.kind == "reduction":
        return any(a in step.contracted for a in component)
    return any(step.factors[a] in step.rule.statistics for a in component)


def _whole_hidden(step: Align, constants: Constants, position: int) -> bool:
    """Whether an operand that is zero as a whole hides this one."""
    if step.rule.kind == "contraction":
        others = [k for k in product_operands(step) if k != position]
        others = others if position in product_operands(step) else []
    else:
        others = [k for k in step.rule.annihilators if k != position]
    values = [step.operands[k] for k in others if k < len(step.operands)]
    return any(v is not None and constants.zero[v] for v in values)


def _project(seen: Array, slot: Slot) -> Array:
    """`seen` over the axes of `slot`: an element sees all that it is made of."""
    extra = tuple(k for k, n in enumerate(seen.shape) if n > 1 and slot.full[k] == 1)
    result = seen.any(axis=extra, keepdims=True) if extra else seen
    return np.broadcast_to(result, slot.full)


def _whole_pinned(step: Align, slot: Slot, seen: Array) -> Array:
    """Rule (5), and statistics: what sees one index of such a factor sees all."""
    whole = tuple(a for a in slot.axes if a in step.pinned)
    if whole:
        seen = np.broadcast_to(seen.any(axis=whole, keepdims=True), slot.full)
    return seen


def _unslotted(step: Align, needs: Needs, position: int, value: int) -> None:
    """Planes that the rule does not describe are seen whole."""
    described = {s.plane for s in step.slots if s.operand == position}
    for k, plane in enumerate(needs.planes[value]):
        if k not in described and (value, k) not in step.beside:
            plane[...] = True


def _inside(slot: Slot, component: tuple[int, ...]) -> bool:
    return bool(slot.axes) and set(slot.axes) <= set(component)
