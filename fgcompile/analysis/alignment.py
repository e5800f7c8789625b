"""From a dimension rule to a step: slots, output planes, and what they couple.

Axes are the factors of a step along which some plane varies. They nest: in a
plane over `(h, d)` the dims `d` lie inside the heads `h`. Three things follow.

(1) Planes whose *innermost* axis is the same hold the same units there: they are
    coupled, element by element, repeated along outer axes that one of them lacks.
(2) Where an axis is innermost in one plane (`h` of attention scores) and outer in
    another (`h` of `(h, d)`), the units of the first are parents of the second's.
(3) If contraction leaves an axis that no operand has as its innermost (the heads
    of `b h q d, b h k d -> b h q k`), new units stand for it: the heads themselves.
    So they do if an outer axis is summed over, but coupled with the operand's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch.fx import Node

from fgcompile.analysis.steps import Align, Array, Flow, Reason, Slot, Value
from fgcompile.rules.movement import is_movement
from fgcompile.rules.pattern import Dim, PatternError, parse
from fgcompile.rules.registry import DimRule, Operand
from fgcompile.rules.shapes import hidden_shape, hidden_size, operands_of, tensor_of


def align(
    flow: Flow,
    node: Node,
    rules: tuple[DimRule, ...],
    beside: frozenset[tuple[int, int]] = frozenset(),
) -> None:
    """Append the steps of `rules` to `flow`, couple units, make output planes.

    Planes in `beside`, as (value, plane), are left to another step of the node.
    """
    named: dict[str, tuple[int | None, tuple[int, ...]]] = {}
    for rule in rules:
        step = _step(flow, node, rule, named, beside)
        if step is None:
            continue
        _couple(flow, step)
        _make_outputs(flow, step, named)
        flow.steps.append(step)


def _step(
    flow: Flow,
    node: Node,
    rule: DimRule,
    named: dict[str, tuple[int | None, tuple[int, ...]]],
    beside: frozenset[tuple[int, int]],
) -> Align | None:
    pattern = parse(rule.pattern)
    values, sources, dims, shapes = [], [], [], []
    for position, operand in enumerate(_operands(node, rule)):
        value, source, shape = _resolve(flow, operand, named)
        values.append(value)
        sources.append(source)
        present = operand is not None
        dims.append(pattern.operand_dims(position, len(shape)) if present else ())
        shapes.append(shape)
    sizes = _factor_sizes(rule, dims, shapes)
    if not rule.output and tensor_of(node) is not None:
        outputs = pattern.output_dims(len(node.meta["val"].shape))
        for _, text in _bound(node, outputs, sizes):
            raise PatternError(text)
    if all(v is None for v in values):
        if rule.output:
            named[rule.output] = (None, _output_shape(rule, sizes, _rank(rule, shapes)))
        return None
    factors = tuple(sizes)
    step = Align(
        node,
        rule,
        tuple(values),
        tuple(sources),
        tuple(dims),
        (),
        factors,
        tuple(sizes.values()),
        beside=beside,
    )
    for position, index in enumerate(values):
        if index is not None:
            _add_slots(flow, step, position, index)
    _mark_loose(flow, step)
    _pin_factors(flow, step)
    return step


def _operands(node: Node, rule: DimRule) -> tuple[Operand, ...]:
    if rule.operands is not None:
        return rule.operands
    return tuple(n for n in operands_of(node) if tensor_of(n) is not None)


def _resolve(
    flow: Flow,
    operand: Operand,
    named: dict[str, tuple[int | None, tuple[int, ...]]],
) -> tuple[int | None, Node | None, tuple[int, ...]]:
    if operand is None:
        return None, None, ()
    if isinstance(operand, str):
        value, shape = named[operand]
        return value, None, shape
    tensor = tensor_of(operand)
    if tensor is None:
        raise PatternError(f"operand {operand} is not a tensor")
    return flow.value_of(operand), operand, hidden_shape(tensor)


def _factor_sizes(
    rule: DimRule, dims: list[tuple[Dim, ...]], shapes: list[tuple[int, ...]]
) -> dict[str, int]:
    """Size of every factor, in nesting order: as first met, longest operand first."""
    sizes: dict[str, int] = {}
    known = dict(rule.sizes)
    order = sorted(range(len(dims)), key=lambda k: -sum(map(len, dims[k])))
    for k in order:
        for dim, size in zip(dims[k], shapes[k], strict=True):
            open_factors = [f for f in dim if f not in known]
            if len(dim) == 1:
                sizes[dim[0]] = max(sizes.get(dim[0], 1), size)
                continue
            given = math.prod(known[f] for f in dim if f in known)
            if len(open_factors) > 1 or size % max(given, 1):
                raise PatternError(f"cannot split a dim of {size} into {dim}")
            for f in dim:
                sizes[f] = max(sizes.get(f, 1), known.get(f, size // given))
    return sizes


def _bound(
    node: Node, dims: tuple[Dim, ...], sizes: dict[str, int]
) -> Iterator[tuple[str, str]]:
    """Factors of units that are as many as a size of the inputs, and a text for each.

    `min(length, 4)` beside four units is such a size.
    """
    tensor = tensor_of(node)
    shape = tensor.shape if tensor is not None else ()
    for dim, size in zip(dims, shape, strict=False):
        units = math.prod(sizes.get(factor, 1) for factor in dim)
        if not isinstance(size, int) and hidden_size(size) == 1 != units:
            yield dim[-1], f"a size of the inputs stands for {units} units"


def _rank(rule: DimRule, shapes: list[tuple[int, ...]]) -> int:
    """Rank of a named output: that of the widest operand with an ellipsis."""
    pattern = parse(rule.pattern)
    tokens = pattern.output
    if "..." not in tokens:
        return len(tokens)
    free = max(
        len(shape) - len(operand) + 1
        for operand, shape in zip(pattern.operands, shapes, strict=False)
        if "..." in operand and shape
    )
    return len(tokens) - 1 + free


def _output_shape(rule: DimRule, sizes: dict[str, int], rank: int) -> tuple[int, ...]:
    dims = parse(rule.pattern).output_dims(rank)
    return tuple(math.prod(sizes.get(f, 1) for f in dim) for dim in dims)


def _add_slots(flow: Flow, step: Align, position: int, index: int) -> None:
    value = flow.values[index]
    for k, plane in enumerate(value.planes):
        if (index, k) in step.beside:
            continue
        slot = _slot(step, step.dims[position], plane.shape, (index, k, position))
        if slot is not None:
            step.slots.append(slot)
            continue
        text = f"{_name(step.node)} mixes its positions"
        hint = "Positions, and what slides over them, stay as many as they are."
        flow.reasons.append(Reason(text, step.node, hint=hint))
        flow.units.pin(plane, len(flow.reasons) - 1)


def _pin_factors(flow: Flow, step: Align) -> None:
    """Factors that the rule pins, and statistics of values that hold no units."""
    for factor, text in step.rule.pinned.items():
        step.pinned[step.factors.index(factor)] = text
    for factor in step.rule.statistics:
        axis = step.factors.index(factor)
        if not any(s.operand == 0 and axis in s.axes for s in step.slots):
            step.pinned[axis] = f"{_name(step.node)} has statistics of model inputs"
    sizes = dict(zip(step.factors, step.sizes, strict=True))
    for source, dims in zip(step.sources, step.dims, strict=True):
        for factor, text in _bound(source, dims, sizes) if source is not None else ():
            step.pinned[step.factors.index(factor)] = text
    for axis, text in step.pinned.items():
        slots = [s for s in step.slots if axis in s.axes]
        if slots:
            flow.reasons.append(Reason(text, step.node, hint=_hint(step)))
        for slot in slots:
            plane = flow.values[slot.value].planes[slot.plane]
            flow.units.pin(plane, len(flow.reasons) - 1)


def _hint(step: Align) -> str:
    if step.rule.kind == "lookup":
        return "Any of its rows may be asked for."
    return "If one unit went, what the operator makes of the others would change."


def _slot(
    step: Align,
    dims: tuple[Dim, ...],
    shape: tuple[int, ...],
    key: tuple[int, int, int],
) -> Slot | None:
    """How a plane of `shape` lies in the factors; None if a dim is not described."""
    split, labels = [], []
    for dim, size in zip(dims, shape, strict=True):
        # A dim that broadcasting adds in front has a factor of the output alone.
        dim = tuple(factor for factor in dim if factor in step.factors)
        if size > 1 and not dim:
            return None
        for factor in dim:
            split.append(step.sizes[step.factors.index(factor)] if size > 1 else 1)
            labels.append(step.factors.index(factor))
        if not dim:
            split.append(1)
            labels.append(len(step.factors))
        elif size > 1 and math.prod(split[len(split) - len(dim) :]) != size:
            raise PatternError(f"a dim of {size} does not fit factors {dim}")
    order = tuple(sorted(range(len(split)), key=lambda k: labels[k]))
    full = [1] * len(step.factors)
    for label, size in zip(labels, split, strict=True):
        if label < len(full):
            full[label] = size
    return Slot(*key, tuple(split), order, tuple(full))


def _mark_loose(flow: Flow, step: Align) -> None:
    """A table that several steps read beside heads follows none of them alone."""
    for k, slot in enumerate(step.slots):
        source = step.sources[slot.operand]
        if source is None or not flow.values[slot.value].table or not slot.axes:
            continue
        others = [s for s in step.slots if s is not slot and s.axes == slot.axes]
        heads = any(
            flow.units.is_head(flow.values[s.value].planes[s.plane]) for s in others
        )
        if (heads or _meets_heads(step, slot)) and _is_shared(flow, source):
            step.slots[k] = replace(slot, loose=True)


def _meets_heads(step: Align, slot: Slot) -> bool:
    """Whether the slot's innermost axis becomes a head axis in this step."""
    inner = slot.axes[-1]
    return any(inner in s.axes[:-1] for s in step.slots if s is not slot)


def _is_shared(flow: Flow, node: Node) -> bool:
    """Whether a table, or one that it was computed from, is read several times."""
    if _uses(node) > 1:
        return True
    values = ((n, flow.value_of(n)) for n in node.all_input_nodes)
    tables = [n for n, v in values if v is not None and flow.values[v].table]
    return any(_is_shared(flow, table) for table in tables)


def _uses(node: Node) -> int:
    """Number of nodes that read `node`'s elements, through movement operators."""
    return sum(_uses(user) if is_movement(user) else 1 for user in node.users)


def _couple(flow: Flow, step: Align) -> None:
    """Rules (1) and (2) for the operands."""
    slots = [s for s in step.slots if s.axes and not s.loose]
    couple_slots(flow, slots)


def couple_slots(flow: Flow, slots: list[Slot]) -> None:
    """Couple planes by their innermost axes; make outer planes parents."""
    for axis in {s.axes[-1] for s in slots}:
        inner = [s for s in slots if s.axes[-1] == axis]
        first = max(inner, key=lambda s: len(s.axes))
        for other in inner:
            if other is not first:
                flow.units.couple(_ids(flow, first), _ids(flow, other))
        for child in slots:
            if axis in child.axes[:-1]:
                flow.units.set_parent(_ids(flow, child), _ids(flow, first))


def _ids(flow: Flow, slot: Slot) -> Array:
    return slot.spread(flow.values[slot.value].planes[slot.plane])


def _make_outputs(
    flow: Flow,
    step: Align,
    named: dict[str, tuple[int | None, tuple[int, ...]]],
) -> None:
    rule, node = step.rule, step.node
    pattern = parse(rule.pattern)
    sizes = dict(zip(step.factors, step.sizes, strict=True))
    if rule.output:
        shapes = [flow.values[v].shape if v is not None else () for v in step.operands]
        shapes = [
            s or _source_shape(n) for s, n in zip(shapes, step.sources, strict=True)
        ]
        shape = _output_shape(rule, sizes, _rank(rule, shapes))
        targets = [shape]
    else:
        value = node.meta["val"]
        tensors = value if isinstance(value, (list, tuple)) else [value]
        targets = [hidden_shape(t) for t in tensors[: rule.outputs]]
    dims = pattern.output_dims(len(targets[0]))
    present = {f for dim in dims for f in dim}
    step.contracted = tuple(
        k for k, f in enumerate(step.factors) if f not in present and _varies(step, k)
    )
    planes = [(comp, _plane_ids(flow, step, comp)) for comp in _components(step, dims)]
    indices = []
    for k, shape in enumerate(targets):
        index = len(flow.values)
        table = rule.kind in ("pointwise", "lookup") and all(
            flow.values[v].table for v in step.operands if v is not None
        )
        value = Value(node, shape, [], table, -1 if rule.output else k)
        flow.values.append(value)
        indices.append(index)
        for component, ids in planes:
            _add_result(step, value, index, dims, component, ids)
    step.outputs = tuple(indices)
    couple_slots(
        flow, [*(s for s in step.slots if s.axes and not s.loose), *step.results]
    )
    if rule.output:
        named[rule.output] = (indices[0], targets[0])
    else:
        flow.of[node] = tuple(indices)


def _source_shape(node: Node | None) -> tuple[int, ...]:
    tensor = tensor_of(node) if node is not None else None
    return hidden_shape(tensor) if tensor is not None else ()


def _varies(step: Align, axis: int) -> bool:
    return any(axis in slot.axes for slot in step.slots)


def _components(step: Align, dims: tuple[Dim, ...]) -> list[tuple[int, ...]]:
    """Axes of the output that some plane ties together, one tuple per plane.

    Factors of one compound dim go together if any of them varies.
    """
    position = {f: k for k, f in enumerate(step.factors)}
    groups: list[set[int]] = []
    ties = [set(s.axes) for s in step.slots if s.axes]
    varying = set().union(*ties) if ties else set()
    for dim in dims:
        axes = {position[f] for f in dim if f in position}
        if axes & varying:
            groups.append(axes)
    for tie in ties:
        touched = [g for g in groups if g & tie]
        if len(touched) > 1:
            groups = [g for g in groups if not g & tie] + [set().union(*touched)]
    return sorted(tuple(sorted(g)) for g in groups)


def _plane_ids(flow: Flow, step: Align, component: tuple[int, ...]) -> Array:
    """Ids of an output plane over `component`, shape over all factors (rule 3)."""
    shape = tuple(size if k in component else 1 for k, size in enumerate(step.sizes))
    candidates = [
        s
        for s in step.slots
        if not s.loose and s.axes and set(s.axes) <= set(component)
    ]
    innermost = _innermost(step, component)
    candidates = [s for s in candidates if s.axes[-1] == innermost]
    if candidates:
        best = max(candidates, key=lambda s: len(s.axes))
        return np.broadcast_to(_ids(flow, best), shape)
    heads = not any(s.axes and s.axes[-1] == innermost for s in step.slots)
    family = flow.units.new_family("", 0, math.prod(shape), heads=heads)
    return family.ids.reshape(shape)


def _innermost(step: Align, component: tuple[int, ...]) -> int:
    """The last axis of `component` that varies in some operand."""
    return max((a for a in component if _varies(step, a)), default=component[-1])


def _add_result(
    step: Align,
    value: Value,
    index: int,
    dims: tuple[Dim, ...],
    component: tuple[int, ...],
    ids: Array,
) -> None:
    position = {f: k for k, f in enumerate(step.factors)}
    shape = tuple(
        math.prod(
            step.sizes[position[f]]
            for f in dim
            if f in position and position[f] in component
        )
        for dim in dims
    )
    slot = _slot(step, dims, shape, (index, len(value.planes), -1))
    assert slot is not None
    value.planes.append(slot.collect(np.ascontiguousarray(ids), shape))
    step.results.append(slot)


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[1] if schema is not None else str(node.target)
