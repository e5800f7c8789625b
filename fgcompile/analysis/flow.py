"""Runs a program on planes: the one pass over the graph that finds all steps."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import torch
from torch.fx import Node

from fgcompile.analysis.alignment import align
from fgcompile.analysis.joining import concatenate
from fgcompile.analysis.steps import Array, Flow, Link, Move, Pin, Reason, Value
from fgcompile.program import Program
from fgcompile.rules.movement import (
    ImmovableError,
    is_movement,
    move,
    remember_constant,
)
from fgcompile.rules.pattern import PatternError
from fgcompile.rules.pointwise import pointwise
from fgcompile.rules.registry import JOINS, DimRule, is_pointwise, rule_for
from fgcompile.rules.shapes import hidden_shape


def trace_planes(program: Program) -> Flow:
    """Steps and planes of every value of `program` that depends on a parameter.

    Rules:
    (1) A parameter has one plane per dim; a buffer or constant has none.
    (2) A value without parameters has no planes and couples nothing.
    (3) Movement operators run on the planes; broadcasts align with their input. Planes
    that meet in a dim (heads and the dims that all heads share, flattened) nest.
    (4) An operator with a rule, or tagged pointwise, aligns dims by factors.
    (5) Any other operator pins what reaches it; so does one with a rule that does not
    describe all of its operands.
    """
    flow = Flow()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            _parameter(program, flow, node)
            remember_constant(node, program.parameter(node))
        elif node.op == "output":
            _output(flow, node)
        elif node.op == "call_function":
            _call(flow, node)
    return flow


def _parameter(program: Program, flow: Flow, node: Node) -> None:
    name = str(node.target)
    if name not in flow.parameters:
        if not program.is_parameter(node):
            return
        tensor = program.parameter(node)
        planes = []
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                shape = [1] * tensor.dim()
                shape[dim] = size
                family = flow.units.new_family(name, dim, size)
                planes.append(family.ids.reshape(shape))
        flow.parameters[name] = len(flow.values)
        flow.values.append(Value(node, tuple(tensor.shape), planes, table=True))
    flow.of[node] = (flow.parameters[name],)


def _output(flow: Flow, node: Node) -> None:
    operands = tuple(
        v for n in node.all_input_nodes if (v := flow.value_of(n)) is not None
    )
    hint = "Callers see its width; a unit that is constant goes and is put back."
    reason = Reason("it is an output of the model", node, hint=hint)
    _pin(flow, node, operands, reason)


def _call(flow: Flow, node: Node) -> None:
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        values = flow.of.get(node.args[0])
        if values is not None:
            flow.of[node] = (values[node.args[1]],)  # type: ignore[index]
        return
    operands = tuple(
        v for n in node.all_input_nodes if (v := flow.value_of(n)) is not None
    )
    if not operands or _reads_sizes(flow, node):
        return
    before = len(flow.steps)
    try:
        _handler(node)(flow, node)
    except (ImmovableError, PatternError) as error:
        _unknown(flow, node, operands, str(error))
        return
    described = {v for step in flow.steps[before:] for v in step.operands}
    _pin_rest(flow, node, tuple(v for v in operands if v not in described))


_SIZE_READERS = {
    *("aten::new_empty", "aten::new_full", "aten::new_ones", "aten::new_zeros"),
    *("aten::sym_size", "aten::sym_numel"),
}


def _reads_sizes(flow: Flow, node: Node) -> bool:
    """Whether a node reads no element, and no size that units have a part in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.name not in _SIZE_READERS:
        return False
    source = node.args[0]
    index = flow.value_of(source) if isinstance(source, Node) else None
    if index is None or schema.name.startswith("aten::new"):
        return index is not None
    planes = flow.values[index].planes
    if schema.name == "aten::sym_numel":
        return not planes
    dim = node.args[1]
    return all(plane.shape[dim] == 1 for plane in planes)  # type: ignore[index]


def _pin_rest(flow: Flow, node: Node, operands: tuple[int, ...]) -> None:
    """Operands that no step describes, such as an index that is data, stay whole."""
    if not operands:
        return
    hint = "Its values choose elements of something else, or how it is computed."
    flow.reasons.append(Reason(f"{node.target} reads it as data", node, hint=hint))
    for index in operands:
        for plane in flow.values[index].planes:
            flow.units.pin(plane, len(flow.reasons) - 1)
    flow.steps.append(Pin(node, operands, (), len(flow.reasons) - 1))


def _handler(node: Node) -> Callable[[Flow, Node], None]:
    schema = getattr(node.target, "_schema", None)
    name = schema.name if schema is not None else ""
    if name in JOINS:
        return concatenate
    if is_movement(node):
        return _movement
    return _rule


def _rule(flow: Flow, node: Node) -> None:
    name = getattr(getattr(node.target, "_schema", None), "name", str(node.target))
    rule = rule_for(node.target)
    found: DimRule | tuple[DimRule, ...] | None = None
    if rule is not None:
        found = rule(node)
    elif is_pointwise(node.target):
        found = pointwise(node)
    if found is None:
        raise ImmovableError(f"no dimension rule for {name.replace('::', '.')}")
    align(flow, node, found if isinstance(found, tuple) else (found,))


def _movement(flow: Flow, node: Node) -> None:
    source = node.args[0]
    index = flow.value_of(source) if isinstance(source, Node) else None
    if index is None:
        raise ImmovableError("its index depends on parameters")
    value = flow.values[index]
    moved = {
        p: maps
        for p, plane in enumerate(value.planes)
        if (maps := _moved(flow, node, plane)) is not None
    }
    shapes = _output_shapes(node)
    links: list[Link] = []
    outputs = []
    for k, shape in enumerate(shapes):
        planes: list[Array] = []
        for parts in _meeting({p: maps[k] for p, maps in moved.items()}):
            target = (len(flow.values), len(planes))
            links += [Link(index, p, *target, each) for p, each in parts.items()]
            planes.append(_nested(flow, value, parts))
        outputs.append(len(flow.values))
        flow.values.append(Value(node, shape, planes, value.table, k))
    flow.of[node] = tuple(outputs)
    flow.steps.append(Move(node, (index,), tuple(outputs), links))


def _meeting(moved: dict[int, Array]) -> list[dict[int, Array]]:
    """Planes by position, those together that vary along the same dim of the output."""
    groups: list[dict[int, Array]] = []
    for position, plane in moved.items():
        touched = [g for g in groups if any(_meet(plane, p) for p in g.values())]
        groups = [g for g in groups if not any(g is other for other in touched)]
        groups.append({k: p for g in touched for k, p in g.items()} | {position: plane})
    return [dict(zip(g, np.broadcast_arrays(*g.values()), strict=True)) for g in groups]


def _meet(one: Array, other: Array) -> bool:
    return any(m > 1 and n > 1 for m, n in zip(one.shape, other.shape, strict=True))


def _nested(flow: Flow, value: Value, parts: dict[int, Array]) -> Array:
    """Ids of an output plane made of planes of `value`: heads are outermost."""

    def depth(position: int) -> tuple[bool, int]:
        plane = value.planes[position]
        first = next((d for d, n in enumerate(plane.shape) if n > 1), 0)
        return not flow.units.is_head(plane), first

    ids = None
    for position in sorted(parts, key=depth):
        index = parts[position]
        own = np.where(index >= 0, value.planes[position].reshape(-1)[index], -1)
        ids = own if ids is None else flow.units.nest(ids, own)
    assert ids is not None
    return ids


def _moved(flow: Flow, node: Node, plane: Array) -> list[Array] | None:
    """The plane in each output; None, and its units pinned, where it cannot follow."""
    positions = torch.arange(plane.size).reshape(plane.shape)
    try:
        return [_never_empty(m.numpy()) for m in move(node, positions)]
    except ImmovableError as error:
        hint = "Its units could be followed if it moved them by fixed amounts only."
        flow.reasons.append(Reason(f"{error} ({node.target})", node, hint=hint))
        flow.units.pin(plane, len(flow.reasons) - 1)
        return None


def _never_empty(index: Array) -> Array:
    """An empty value (a slice of nothing) holds no units."""
    return index if index.size else np.full((1,) * index.ndim, -1)


def _output_shapes(node: Node) -> list[tuple[int, ...]]:
    value = node.meta["val"]
    tensors = value if isinstance(value, (list, tuple)) else [value]
    return [hidden_shape(t) for t in tensors]


def _unknown(flow: Flow, node: Node, operands: tuple[int, ...], text: str) -> None:
    name = str(node.target)
    remedy = f"Register a rule: @dim_rule({_called(node)})."
    if is_movement(node) or "no dimension rule" not in text:
        text, remedy = f"{text} ({name})", ""
    _pin(flow, node, operands, Reason(text, node, remedy))


def _called(node: Node) -> str:
    """How code names the operator that a node calls."""
    if isinstance(node.target, torch._ops.OpOverload):
        return f"torch.ops.{node.target}"
    return repr(str(node.target))


def _pin(flow: Flow, node: Node, operands: tuple[int, ...], reason: Reason) -> None:
    flow.reasons.append(reason)
    for index in operands:
        for plane in flow.values[index].planes:
            flow.units.pin(plane, len(flow.reasons) - 1)
    outputs: list[int | None] = []
    value = node.meta.get("val")
    if node.op != "output":
        for k, item in enumerate(
            value if isinstance(value, (list, tuple)) else [value]
        ):
            outputs.append(None)
            if isinstance(item, torch.Tensor):
                outputs[-1] = len(flow.values)
                flow.values.append(Value(node, hidden_shape(item), [], output=k))
        flow.of[node] = tuple(outputs)
    present = tuple(v for v in outputs if v is not None)
    flow.steps.append(Pin(node, operands, present, len(flow.reasons) - 1))
