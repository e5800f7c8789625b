"""Gathers what survives of operands that no unit describes.

Rotary tables, masks, ALiBi slopes and running statistics hold no units, and a
bias table that several layers share follows none of them alone. Where the other
operands of a step shrink, such an operand is gathered just before its use.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.fx import Node

from fgcompile.analysis.steps import Align, Array, Flow, Move
from fgcompile.analysis.survivors import required
from fgcompile.passes.shrinkage import Shrinkage, call, new_buffer
from fgcompile.rules.pattern import Dim
from fgcompile.rules.shapes import hidden_shape, operands_of, tensor_of

aten = torch.ops.aten


def gather_operands(shrinkage: Shrinkage) -> str | None:
    """Every operand of every aligned step has the sizes of the step's survivors.

    Returns:
        Name of the first node that reads one value in several places, of which
        different parts survive; None if there is no such node.
    """
    gathered: dict[tuple[Node, bytes, int], Node] = {}
    for node in list(shrinkage.program.graph.nodes):
        taken: dict[Node, list[Node]] = {}
        for step in shrinkage.aligned(node):
            kept = required(step, shrinkage.survivors)
            for position, source in enumerate(step.sources):
                operand = _operand(node, source)
                if operand is not None:
                    use = _gather(
                        shrinkage, node, operand, step, position, kept, gathered
                    )
                    taken.setdefault(operand, []).append(use)
        for operand, uses in taken.items():
            if set(uses) == {operand}:
                continue
            undescribed = operands_of(node).count(operand) - len(uses)
            if len(set(uses)) > 1 or undescribed > 0:
                return node.name
            node.replace_input_with(operand, uses[0])
        for moved in shrinkage.steps.get(node.name, []):
            if isinstance(moved, Move):
                _gather_repeated(shrinkage, node, moved)
    return None


def forbid_gathers(flow: Flow) -> list[tuple[Node, Node]]:
    """Steps of `flow` keep whole what they could lose only by a gather.

    Returns:
        The nodes of those steps, each with the operand that would be gathered.
    """
    found = []
    for step in flow.steps:
        if isinstance(step, Move):
            step.links[:] = [replace(link, repeats=()) for link in step.links]
        if not isinstance(step, Align):
            continue
        for slots in (step.slots, step.results):
            slots[:] = [replace(slot, loose=False) for slot in slots]
        for position, source in enumerate(step.sources):
            tensor = tensor_of(source) if source is not None else None
            if source is None or tensor is None:
                continue
            shape = hidden_shape(tensor)
            for dim, factors in enumerate(step.dims[position]):
                axes = [step.factors.index(f) for f in factors]
                if shape[dim] > 1 and not _described(step, position, axes):
                    text = f"{source} would have to be gathered"
                    step.pinned.update(dict.fromkeys(axes, text))
                    found.append((step.node, source))
    return found


def _operand(node: Node, source: Node | None) -> Node | None:
    """What `node`, of the copy, reads where the old one reads `source`."""
    if source is None or tensor_of(source) is None:
        return None
    return next((n for n in node.all_input_nodes if n.name == source.name), None)


def _gather(
    shrinkage: Shrinkage,
    node: Node,
    operand: Node,
    step: Align,
    position: int,
    kept: dict[int, Array],
    gathered: dict[tuple[Node, bytes, int], Node],
) -> Node:
    """What `node` is to read at `position` of the step; `operand` if that is whole."""
    if all(k.all() for k in kept.values()):
        return operand
    tensor = tensor_of(step.sources[position])  # type: ignore[arg-type]
    assert tensor is not None
    shape = hidden_shape(tensor)
    for dim, factors in enumerate(step.dims[position]):
        if shape[dim] == 1 or not factors:
            continue
        axes = [step.factors.index(f) for f in factors]
        own = _own_positions(shrinkage, step, position, dim)
        need = _needed(step, kept, axes)
        if need is None or (own is None and _described(step, position, axes)):
            continue
        index = _index(need, axes, own)
        if index.shape[0] == 1 and index.shape[1] == (
            shape[dim] if own is None else len(own)
        ):
            continue
        key = (operand, index.tobytes(), dim)
        if key not in gathered:
            with shrinkage.program.graph.inserting_before(node):
                gathered[key] = _insert(shrinkage, step, operand, position, dim, index)
        operand = gathered[key]
    return operand


def _gather_repeated(shrinkage: Shrinkage, node: Node, step: Move) -> None:
    """Parts of a concatenation are repeated only where something is beside them."""
    for link in step.links:
        operand = next(
            (n for n in node.all_input_nodes if shrinkage.index(n) == link.source), None
        )
        mask = shrinkage.survivors.planes[link.target][link.target_plane]
        planes = shrinkage.flow.values[link.source].planes
        for dim in link.repeats:
            tensor = tensor_of(operand) if operand is not None else None
            others = tuple(d for d in range(mask.ndim) if d != dim)
            index = np.flatnonzero(mask.any(axis=others))
            if tensor is None or tensor.dim() != mask.ndim or operand is None:
                continue
            follows = any(p.shape[dim] > 1 for p in planes)
            if not follows and tensor.shape[dim] == mask.shape[dim] != index.size:
                with shrinkage.program.graph.inserting_before(node):
                    buffer = new_buffer(
                        shrinkage.program, "index", torch.from_numpy(index), operand
                    )
                    taken = _select(shrinkage, operand, dim, buffer)
                node.replace_input_with(operand, taken)
                operand = taken


def _described(step: Align, position: int, axes: list[int]) -> bool:
    return any(
        s.operand == position and set(axes) & set(s.axes) and not s.loose
        for s in step.slots
    )


def _own_positions(
    shrinkage: Shrinkage, step: Align, position: int, dim: int
) -> Array | None:
    """Survivors of a loose operand along `dim`; None if it is not loose there."""
    for slot in step.slots:
        plane = shrinkage.flow.values[slot.value].planes[slot.plane]
        if slot.operand == position and slot.loose and plane.shape[dim] > 1:
            return np.flatnonzero(shrinkage.survivors.planes[slot.value][slot.plane])
    return None


def _needed(step: Align, kept: dict[int, Array], axes: list[int]) -> Array | None:
    """What survives of a dim made of `axes`, with the outer axes it depends on."""
    need: Array | None = None
    for axis in axes:
        if axis in kept:
            need = kept[axis] if need is None else need & kept[axis]
    if need is None or need.all():
        return None
    full = [step.sizes[k] if k in axes else need.shape[k] for k in range(need.ndim)]
    return np.broadcast_to(need, full)


def _index(need: Array, axes: list[int], own: Array | None) -> Array:
    """Positions along the dim, one row per surviving outer unit; one row if equal."""
    outer = [k for k in range(need.ndim) if k not in axes]
    rows = need.transpose(outer + axes).reshape(
        -1, int(np.prod([need.shape[k] for k in axes]))
    )
    rows = rows[rows.any(axis=1)]
    if (rows == rows[:1]).all():
        rows = rows[:1]
    index = np.stack([np.flatnonzero(row) for row in rows])
    if own is not None:
        index = np.searchsorted(own, index)
    return index.astype(np.int64)


def _insert(
    shrinkage: Shrinkage,
    step: Align,
    operand: Node,
    position: int,
    dim: int,
    index: Array,
) -> Node:
    program = shrinkage.program
    tensor = tensor_of(operand)
    assert tensor is not None
    buffer = new_buffer(
        program, "index", torch.from_numpy(index.reshape(-1).copy()), operand
    )
    if len(index) == 1:
        return _select(shrinkage, operand, dim, buffer)
    # A different set for each outer unit (head): the operand is uniform over those
    # units, so all sets are gathered side by side and then split off as a dim.
    outer = _outer_dim(step, position, dim, tensor.dim())
    wide = _select(shrinkage, operand, dim, buffer)
    split = call(program, aten.unflatten.int, wide, dim, [len(index), index.shape[1]])
    if outer < 0:
        moved = call(program, aten.movedim.int, split, dim, 0)
        for _ in range(-outer - moved.meta["val"].dim()):
            moved = call(program, aten.unsqueeze.default, moved, 1)
        return moved
    moved = call(program, aten.movedim.int, split, dim, outer)
    return call(program, aten.squeeze.dims, moved, [outer + 1])


def _select(shrinkage: Shrinkage, operand: Node, dim: int, buffer: Node) -> Node:
    """index_select; on a dim that holds the batch too, on its static part."""
    program = shrinkage.program
    tensor = tensor_of(operand)
    assert tensor is not None
    if isinstance(tensor.shape[dim], int):
        return call(program, aten.index_select.default, operand, dim, buffer)
    size = hidden_shape(tensor)[dim]
    split = call(program, aten.unflatten.int, operand, dim, [-1, size])
    taken = call(program, aten.index_select.default, split, dim + 1, buffer)
    return call(program, aten.flatten.using_ints, taken, dim, dim + 1)


def _outer_dim(step: Align, position: int, dim: int, rank: int) -> int:
    """The operand's dim of the outer axis; negative, from the right, if it has none."""
    axis = step.factors.index(step.dims[position][dim][0])
    slots = [s for s in (*step.slots, *step.results) if axis in s.axes]
    outer = max(a for s in slots for a in s.axes if a < axis)
    for k, factors in enumerate(step.dims[position]):
        if step.factors[outer] in factors:
            return k
    return _from_right(step, outer, step.dims[position])


def _from_right(step: Align, axis: int, dims: tuple[Dim, ...]) -> int:
    """Place of an ellipsis factor that a shorter operand lacks: e2 is -3."""
    name = step.factors[axis]
    return -1 - int(name[1:])
