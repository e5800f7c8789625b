"""Steps of operators that join several tensors: cat and stack.

(1) A plane that varies along the joined dim is made of parts, one per operand; so are
    planes that share another dim with such a plane. A part that is uniform along that
    other dim (the rotary dims that all heads share) is repeated there: each repetition
    is a unit of its own.
(2) The other planes are aligned with each other, as in an elementwise operator.
"""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from fgcompile.analysis.alignment import align
from fgcompile.analysis.steps import Array, Flow, Link, Move, Value
from fgcompile.rules.movement import ImmovableError
from fgcompile.rules.registry import DimRule
from fgcompile.rules.shapes import hidden_shape, tensor_of

Planes = set[tuple[int, int]]
"""Planes of values, as (value, plane)."""


def concatenate(flow: Flow, node: Node) -> None:
    """Steps of `cat` and `stack`."""
    nodes = tuple(node.args[0])  # type: ignore[arg-type]
    stacks = node.target._schema.name == "aten::stack"  # type: ignore[union-attr]
    tensor = tensor_of(node)
    assert tensor is not None
    argument = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    dim = int(argument) % tensor.dim()  # type: ignore[arg-type]
    every = {
        (v, k)
        for n in nodes
        if (v := flow.value_of(n)) is not None
        for k, plane in enumerate(flow.values[v].planes)
        if _holds_units(plane)
    }
    if stacks:
        start = every - _same_everywhere(flow, nodes, every)
    else:
        start = {key for key in every if _plane(flow, key).shape[dim] > 1}
    _check_sizes(flow, every, hidden_shape(tensor), dim, stacks)
    widths = [1 if stacks else hidden_shape(n.meta["val"])[dim] for n in nodes]
    if sum(widths) != hidden_shape(tensor)[dim]:
        start = set()  # beside a batch or sequence: alignment pins them
    joined = _joined(flow, every, start)
    aligned = every - joined
    if aligned or not joined:
        rule = _rule(nodes, tensor.dim(), dim, stacks)
        align(flow, node, (rule,), beside=frozenset(joined))  # (2)
    if joined:
        _join(flow, node, nodes, dim, hidden_shape(tensor), stacks, frozenset(aligned))


def _check_sizes(
    flow: Flow, planes: Planes, shape: tuple[int, ...], dim: int, stacks: bool
) -> None:
    """A dim of units beside a dynamic one that happens to be as large fits nowhere.

    Raises:
        ImmovableError: If there is one.
    """
    for key in planes:
        sizes = list(_plane(flow, key).shape)
        if stacks:
            sizes.insert(dim, 1)
        for d, (own, joint) in enumerate(zip(sizes, shape, strict=True)):
            if d != dim and own not in (1, joint):
                raise ImmovableError(f"{own} units beside a size of the inputs")


def _same_everywhere(flow: Flow, nodes: tuple[Node, ...], every: Planes) -> Planes:
    """Planes that all operands have alike: stacking them makes no new units."""
    indices = {flow.value_of(n) for n in nodes}
    texts = {key: _plane(flow, key).tobytes() for key in every}
    found: dict[bytes, set[int | None]] = {}
    for (v, _), text in texts.items():
        found.setdefault(text, set()).add(v)
    return {key for key, text in texts.items() if found[text] == indices}


def _joined(flow: Flow, every: Planes, start: Planes) -> Planes:
    """Planes of rule (1), of which those in `start` are some, as (value, plane)."""
    if not start:
        return start
    joined, dims = set(start), set[int]()
    while True:
        dims |= {d for key in joined for d in _varying(_plane(flow, key))}
        more = {
            key for key in every - joined if dims & set(_varying(_plane(flow, key)))
        }
        if not more:
            return joined
        joined |= more


def _holds_units(plane: Array) -> bool:
    """A slice of nothing does not."""
    return bool((plane >= 0).any())


def _plane(flow: Flow, key: tuple[int, int]) -> Array:
    return flow.values[key[0]].planes[key[1]]


def _varying(plane: Array) -> list[int]:
    return [d for d, n in enumerate(plane.shape) if n > 1]


def _rule(nodes: tuple[Node, ...], rank: int, dim: int, stacks: bool) -> DimRule:
    """All dims but the joined one are aligned."""
    names = ["_" if k == dim else f"n{k}" for k in range(rank)]
    given = [n for n in names if n != "_"] if stacks else names
    pattern = ", ".join([" ".join(given)] * len(nodes)) + f" -> {' '.join(names)}"
    return DimRule(pattern, kind="join", operands=nodes)


def _join(
    flow: Flow,
    node: Node,
    nodes: tuple[Node, ...],
    dim: int,
    shape: tuple[int, ...],
    stacks: bool,
    beside: frozenset[tuple[int, int]] = frozenset(),
) -> None:
    """One output plane over all dims in which some operand varies, from parts.

    Planes in `beside` are described by another step, which made the output.
    """
    indices = [flow.value_of(n) for n in nodes]
    target, position = _output(flow, node, indices, shape, new=not beside)
    parts = [_operand_planes(flow, v, dim, stacks, beside) for v in indices]
    varying = {dim} | {
        k for part in parts for _, p in part for k, n in enumerate(p.shape) if n > 1
    }
    widths = [1 if stacks else hidden_shape(n.meta["val"])[dim] for n in nodes]
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
        for k, plane in planes:
            full = np.full(plane_shape, -1, np.int64)
            full[window] = np.arange(plane.size).reshape(plane.shape)
            repeats = tuple(
                d for d, n in enumerate(plane.shape) if n < plane_shape[d] and d != dim
            )
            assert index is not None
            links.append(Link(index, k, target, position, full, repeats))
        if planes:
            ids[window] = _part(flow, [p for _, p in planes], ids[window].shape, dim)
    flow.values[target].planes.append(ids)
    present = tuple(v for v in indices if v is not None)
    flow.steps.append(Move(node, present, (target,), links, beside))


def _output(
    flow: Flow,
    node: Node,
    indices: list[int | None],
    shape: tuple[int, ...],
    new: bool,
) -> tuple[int, int]:
    """Index of the output's value, and of its next plane."""
    if new:
        table = all(flow.values[v].table for v in indices if v is not None)
        flow.of[node] = (len(flow.values),)
        flow.values.append(Value(node, shape, [], table))
    index = flow.value_of(node)
    assert index is not None
    return index, len(flow.values[index].planes)


def _part(flow: Flow, planes: list[Array], shape: tuple[int, ...], dim: int) -> Array:
    """Ids of what one operand gives to the output's plane."""
    ids, *inner = sorted(planes, key=lambda p: not flow.units.is_head(p))
    for plane in inner:
        ids = flow.units.nest(ids, plane)
    if any(
        m < n for d, (m, n) in enumerate(zip(ids.shape, shape, strict=True)) if d != dim
    ):
        return flow.units.repeat(ids, shape)
    return ids


def _operand_planes(
    flow: Flow,
    index: int | None,
    dim: int,
    stacks: bool,
    beside: frozenset[tuple[int, int]],
) -> list[tuple[int, Array]]:
    if index is None:
        return []
    planes = flow.values[index].planes
    if stacks:
        planes = [np.expand_dims(p, dim) for p in planes]
    return [
        (k, p)
        for k, p in enumerate(planes)
        if (index, k) not in beside and _holds_units(p)
    ]
