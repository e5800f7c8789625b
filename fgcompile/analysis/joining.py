"""Steps of operators that join several tensors: cat and stack.

A plane that varies along the joined dim is made of parts, one per operand; planes
that do not are aligned with each other, as in an elementwise operator.
"""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from fgcompile.analysis.alignment import align
from fgcompile.analysis.steps import Array, Flow, Link, Move, Value
from fgcompile.rules.registry import DimRule
from fgcompile.rules.shapes import hidden_shape, tensor_of


def concatenate(flow: Flow, node: Node) -> None:
    """Steps of `cat` and `stack`."""
    nodes = tuple(node.args[0])  # type: ignore[arg-type]
    stacks = node.target._schema.name == "aten::stack"  # type: ignore[union-attr]
    tensor = tensor_of(node)
    assert tensor is not None
    argument = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    dim = int(argument) % tensor.dim()  # type: ignore[arg-type]
    if not stacks and _uniform_along(flow, nodes, dim):
        align(flow, node, (_positions_rule(nodes, tensor.dim(), dim),))
        return
    if stacks and len(nodes) == 1:
        _stack_rule(flow, node, nodes, dim)
        return
    _join(flow, node, nodes, dim, hidden_shape(tensor), stacks)


def _uniform_along(flow: Flow, nodes: tuple[Node, ...], dim: int) -> bool:
    indices = [flow.value_of(n) for n in nodes]
    return all(
        plane.shape[dim] == 1
        for v in indices
        if v is not None
        for plane in flow.values[v].planes
    )


def _positions_rule(nodes: tuple[Node, ...], rank: int, dim: int) -> DimRule:
    """Joined along positions: the other dims are aligned."""
    names = " ".join("_" if k == dim else f"n{k}" for k in range(rank))
    pattern = ", ".join([names] * len(nodes)) + f" -> {names}"
    return DimRule(pattern, kind="join", operands=nodes)


def _stack_rule(flow: Flow, node: Node, nodes: tuple[Node, ...], dim: int) -> None:
    tensor = tensor_of(node)
    assert tensor is not None
    names = [f"n{k}" for k in range(tensor.dim() - 1)]
    target = " ".join([*names[:dim], "_", *names[dim:]])
    rule = DimRule(
        f"{' '.join(names)} -> {target}",
        kind="join",
        operands=nodes,
    )
    align(flow, node, (rule,))


def _join(
    flow: Flow,
    node: Node,
    nodes: tuple[Node, ...],
    dim: int,
    shape: tuple[int, ...],
    stacks: bool,
) -> None:
    """One output plane over all dims in which some operand varies, from parts."""
    indices = [flow.value_of(n) for n in nodes]
    varying = _varying_dims(flow, indices, dim, stacks)
    target = len(flow.values)
    widths, parts = [], []
    for operand, index in zip(nodes, indices, strict=True):
        tensor = tensor_of(operand)
        assert tensor is not None
        widths.append(1 if stacks else hidden_shape(tensor)[dim])
        parts.append(_operand_planes(flow, index, dim, stacks))
    plane_shape = tuple(
        sum(widths) if k == dim else (n if k in varying else 1)
        for k, n in enumerate(shape)
    )
    ids = np.full(plane_shape, -1, np.int64)
    links: list[Link] = []
    start = 0
    for index, width, planes in zip(indices, widths, parts, strict=True):
        window = tuple(
            slice(start, start + width) if k == dim else slice(None)
            for k in range(len(shape))
        )
        start += width
        for position, plane in planes:
            positions = np.arange(plane.size).reshape(plane.shape)
            full = np.full(plane_shape, -1, np.int64)
            full[window] = positions
            assert index is not None
            links.append(Link(index, position, target, 0, full))
            old = ids[window]
            flow.units.couple(old, np.broadcast_to(plane, old.shape))
            ids[window] = np.where(old >= 0, old, plane)
    table = all(flow.values[v].table for v in indices if v is not None)
    flow.values.append(Value(node, shape, [ids], table))
    flow.of[node] = (target,)
    present = tuple(v for v in indices if v is not None)
    flow.steps.append(Move(node, present, (target,), links))


def _varying_dims(
    flow: Flow, indices: list[int | None], dim: int, stacks: bool
) -> set[int]:
    varying = {dim}
    for index in indices:
        for _, plane in _operand_planes(flow, index, dim, stacks):
            varying |= {k for k, n in enumerate(plane.shape) if n > 1}
    return varying


def _operand_planes(
    flow: Flow, index: int | None, dim: int, stacks: bool
) -> list[tuple[int, Array]]:
    if index is None:
        return []
    planes = flow.values[index].planes
    if stacks:
        planes = [np.expand_dims(p, dim) for p in planes]
    return list(enumerate(planes))
