"""What role a class of units plays, by the operators that its units flow through."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from torch.fx import Node

from fgcompile.analysis.classes import Classes
from fgcompile.analysis.steps import Align, Flow, Slot, Step
from fgcompile.program import Program
from fgcompile.rules.shapes import tensor_of
from fgcompile.units import BoolArray, UnitIds

GroupKind = Literal["mlp", "head", "qk", "vo", "residual", "expert", "conv", "other"]
KINDS: tuple[GroupKind, ...] = (
    "other",
    "mlp",
    "conv",
    "expert",
    "vo",
    "qk",
    "residual",
    "head",
)
"""Kinds from weakest to strongest claim: a class is of the last one that fits."""


@dataclass
class Roles:
    """What units take part in, one flag per unit.

    Attributes:
        scored: Contracted between two activations whose product is compared.
        passed: Left over where an activation is averaged by another one.
        headed: Index of the heads in which one of these two is done.
        read: Contracted with a weight.
        written: Produced by a contraction with a weight.
        convolved: Produced by a convolution.
        embedded: Columns of a table that is looked up.
        skipped: On a stream that a branch is added to.
        chosen: One of several weights stacked in one parameter.
        summarised: Part of a sum or a statistic over themselves.
    """

    scored: BoolArray
    passed: BoolArray
    headed: BoolArray
    read: BoolArray
    written: BoolArray
    convolved: BoolArray
    embedded: BoolArray
    skipped: BoolArray
    chosen: BoolArray
    summarised: BoolArray


def roles_of(program: Program, flow: Flow) -> Roles:
    """The roles of every unit of `flow`."""
    roles = Roles(*(np.zeros(flow.units.count, bool) for _ in fields(Roles)))
    data = data_nodes(program)
    compared = _compared(flow)
    for step in flow.steps:
        if isinstance(step, Align):
            _add_step(flow, step, roles, data, compared)
    for node in _skips(program, flow):
        value = flow.values[flow.of[node][0]]  # type: ignore[index]
        for plane in value.planes:
            roles.skipped[plane[plane >= 0]] = True
    return roles


def kinds_of(classes: Classes, roles: Roles) -> list[GroupKind]:
    """The kind of every class."""

    def having(flags: BoolArray) -> BoolArray:
        return classes.mark(np.flatnonzero(flags))

    fits: dict[GroupKind, BoolArray] = {
        "mlp": having(roles.read) & having(roles.written),
        "conv": having(roles.convolved),
        "expert": having(roles.chosen),
        "vo": having(roles.passed),
        "qk": having(roles.scored),
        "residual": having(roles.skipped) | having(roles.embedded) & having(roles.read),
        "head": classes.heads,
    }
    ranks = np.zeros(classes.count, np.int64)
    for rank, kind in enumerate(KINDS):
        if kind in fits:
            ranks[fits[kind]] = rank
    return [KINDS[rank] for rank in ranks]


def data_nodes(program: Program) -> set[Node]:
    """Nodes whose tensors depend on an input of the model, not only on its sizes."""
    found: set[Node] = set()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if not _holds_tensor(value):
            continue
        if node.op == "placeholder" or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def is_weight(flow: Flow, step: Align, operand: int, data: set[Node]) -> bool:
    """Whether an operand comes from parameters alone, by lookup and elementwise ops."""
    value, source = step.operands[operand], step.sources[operand]
    return value is not None and flow.values[value].table and source not in data


def is_convolution(node: Node) -> bool:
    """Whether the node is a convolution, transposed or not."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.startswith("aten::conv")


def _holds_tensor(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensor, value))
    return hasattr(value, "shape")


def _add_step(
    flow: Flow, step: Align, roles: Roles, data: set[Node], compared: set[Node]
) -> None:
    kind = step.rule.kind
    for slot in step.slots:
        if not slot.axes:
            continue
        ids = flow.values[slot.value].planes[slot.plane]
        ids = ids[ids >= 0]
        inner = slot.axes[-1]
        if kind == "lookup":
            roles.embedded[ids] |= step.factors[inner] not in step.rule.pinned
        elif kind == "normalization" or kind == "reduction":
            names = step.rule.statistics
            if inner in step.contracted or step.factors[inner] in names:
                roles.summarised[ids] = True
        elif kind == "contraction" and slot.operand not in step.rule.addends:
            _add_contraction(flow, step, slot, ids, roles, data, compared)


def _add_contraction(
    flow: Flow,
    step: Align,
    slot: Slot,
    ids: UnitIds,
    roles: Roles,
    data: set[Node],
    compared: set[Node],
) -> None:
    factor = step.factors[slot.axes[-1]]
    weight = is_weight(flow, step, slot.operand, data)
    others = [k for k in factors_of(step) if k != slot.operand]
    beside = [k for k in others if factor in factors_of(step)[k]]
    if factor in step.rule.pinned:
        roles.chosen[ids] |= weight
    elif slot.axes[-1] in step.contracted:
        weights = [k for k in beside if is_weight(flow, step, k, data)]
        if not weight and weights:
            roles.read[ids] = True
        elif not weight and _activations(flow, step, beside, data):
            roles.scored[ids] |= step.node in compared
    elif beside:
        chosen = weight and len(flow.values[slot.value].shape) > 2
        roles.chosen[ids] |= chosen and not is_convolution(step.node)
        roles.convolved[ids] |= is_convolution(step.node)
        attends = not weight and _activations(flow, step, beside, data)
        roles.headed[ids] |= bool(attends) and step.node in compared
    elif weight:
        roles.written[ids] = True
        roles.convolved[ids] |= is_convolution(step.node)
    elif _activations(flow, step, others, data) and step.node in compared:
        roles.passed[ids] = True


def factors_of(step: Align) -> dict[int, set[str]]:
    """Factors of every operand that is multiplied, by its position."""
    return {
        k: {factor for dim in dims for factor in dim}
        for k, dims in enumerate(step.dims)
        if k not in step.rule.addends and dims
    }


def _activations(
    flow: Flow, step: Align, operands: list[int], data: set[Node]
) -> list[int]:
    return [
        k
        for k in operands
        if step.operands[k] is not None and not is_weight(flow, step, k, data)
    ]


def _compared(flow: Flow) -> set[Node]:
    """Contractions that attend: whose result is, or whose operand was, a softmax's.

    Found by walking from every softmax over elementwise and movement steps only.
    """
    before: dict[int, list[Step]] = {}
    after: dict[int, list[Step]] = {}
    for step in flow.steps:
        for value in step.outputs:
            before.setdefault(value, []).append(step)
        for operand in step.operands:
            if operand is not None:
                after.setdefault(operand, []).append(step)
    found: set[Node] = set()
    for step in flow.steps:
        if isinstance(step, Align) and step.rule.kind == "mixing" and step.rule.pinned:
            found |= _contractions_around(step, before, after)
    return found


def _contractions_around(
    start: Step, before: dict[int, list[Step]], after: dict[int, list[Step]]
) -> set[Node]:
    """First contractions met from `start` backwards, and forwards."""
    found: set[Node] = set()
    for backwards in (True, False):
        seen, todo = {id(start)}, [start]
        while todo:
            step = todo.pop()
            values = step.operands if backwards else step.outputs
            table = before if backwards else after
            near = [s for v in values if v is not None for s in table.get(v, [])]
            for other in near:
                if id(other) in seen:
                    continue
                seen.add(id(other))
                kind = other.rule.kind if isinstance(other, Align) else "move"
                if kind == "contraction":
                    found.add(other.node)
                elif kind in ("move", "pointwise", "mixing", "join"):
                    todo.append(other)
    return found


def _skips(program: Program, flow: Flow) -> list[Node]:
    """Sums of a value and of something that a contraction computed from it."""
    order = {node: k for k, node in enumerate(program.graph.nodes)}
    contractions = {
        step.node
        for step in flow.steps
        if isinstance(step, Align) and step.rule.kind == "contraction"
    }
    found = []
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or schema.name not in ("aten::add", "aten::sub"):
            continue
        terms = [n for n in node.args[:2] if isinstance(n, Node)]
        tensors = [n for n in terms if tensor_of(n) is not None]
        if len(tensors) == 2 and flow.value_of(node) is not None:
            early, late = sorted(tensors, key=order.__getitem__)
            if _reaches(late, early, order, contractions):
                found.append(node)
    return found


def _reaches(
    late: Node, early: Node, order: dict[Node, int], contractions: set[Node]
) -> bool:
    """Whether `late` is computed from `early` by way of a contraction."""
    start = (late, late in contractions)
    seen, todo = {start}, [start]
    while todo:
        node, contracted = todo.pop()
        if node is early:
            if contracted:
                return True
            continue
        for operand in node.all_input_nodes:
            after = (operand, contracted or operand in contractions)
            if operand is early:
                after = (operand, contracted)
            if order[operand] >= order[early] and after not in seen:
                seen.add(after)
                todo.append(after)
    return False
