"""Keeps statistics those of the original width, after zeros were removed.

Removed units are zero in the operand of a mean or normalisation, so sums do not
change, only counts. With `n` of `N` units left:

- mean: times `n / N`;
- RMS norm: `eps * N / n` inside, the result times `sqrt(N / n)`;
- layer norm: mean `S / N`, variance `(sum (x - mean)^2 + (N - n) mean^2) / N`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch.fx import Node

from fgcompile.passes.shrinkage import Shrinkage
from fgcompile.program import arguments
from fgcompile.rules.shapes import tensor_of

aten = torch.ops.aten

Repair = Callable[[Shrinkage, Node, int, int, int], None]


def repair_norms(shrinkage: Shrinkage) -> None:
    """Every mean and normalisation computes what it did over the original dims."""
    # Found before the first repair, which puts new nodes before what reads the result.
    for node, repair, source in list(_found(shrinkage)):
        before = shrinkage.flow.values[source].shape
        after = shrinkage.sizes(source)
        dims = _reduced(node, len(before))
        old = math.prod(before[d] for d in dims)
        new = math.prod(after[d] for d in dims)
        if old != new:
            with shrinkage.program.graph.inserting_after(node):
                repair(shrinkage, node, old, new, len(dims))


def _found(shrinkage: Shrinkage) -> Iterator[tuple[Node, Repair, int]]:
    """Means and normalisations, with their repair and the old value that they read."""
    for node in shrinkage.program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        repair = _REPAIRS.get(schema.name) if schema is not None else None
        source = shrinkage.index(node.args[0]) if repair is not None else None
        if repair is not None and source is not None:
            yield node, repair, source


def _reduced(node: Node, rank: int) -> list[int]:
    a = arguments(node)
    if "normalized_shape" in a:
        return list(range(rank - len(a["normalized_shape"]), rank))
    dims = a.get("dim")
    dims = list(range(rank)) if dims is None or dims == [] else dims
    return [d % rank for d in (dims if isinstance(dims, list) else [dims])]


def _mean(shrinkage: Shrinkage, node: Node, old: int, new: int, dims: int) -> None:
    _scale(shrinkage, node, new / old)


def _rms_norm(shrinkage: Shrinkage, node: Node, old: int, new: int, dims: int) -> None:
    a = arguments(node)
    tensor = tensor_of(node)
    assert tensor is not None
    eps = a["eps"] if a["eps"] is not None else torch.finfo(tensor.dtype).eps
    node.args = (a["input"], a["normalized_shape"], a["weight"], eps * old / new)
    node.kwargs = {}
    _scale(shrinkage, node, math.sqrt(old / new))


def _scale(shrinkage: Shrinkage, node: Node, factor: float) -> None:
    scaled = shrinkage.program.graph.call_function(aten.mul.Tensor, (node, factor))
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    scaled.meta.update({k: v for k, v in node.meta.items() if k != "val"})


def _layer_norm(
    shrinkage: Shrinkage, node: Node, old: int, new: int, dims: int
) -> None:
    a = arguments(node)
    axes = list(range(-dims, 0))
    meta = {k: v for k, v in node.meta.items() if k != "val"}
    graph = shrinkage.program.graph
    last = node

    def call(target: torch._ops.OpOverload, *args: object) -> Node:
        nonlocal last
        with graph.inserting_after(last):
            last = graph.call_function(target, args)  # type: ignore[arg-type]
        last.meta.update(meta)
        return last

    total = call(aten.sum.dim_IntList, a["input"], axes, True)
    mean = call(aten.div.Tensor, total, float(old))
    centred = call(aten.sub.Tensor, a["input"], mean)
    squares = call(aten.mul.Tensor, centred, centred)
    inside = call(aten.sum.dim_IntList, squares, axes, True)
    outside = call(aten.mul.Tensor, mean, mean)
    outside = call(aten.mul.Tensor, outside, float(old - new))
    variance = call(aten.add.Tensor, inside, outside)
    variance = call(aten.div.Tensor, variance, float(old))
    variance = call(aten.add.Tensor, variance, a["eps"])
    result = call(aten.mul.Tensor, centred, call(aten.rsqrt.default, variance))
    if a["weight"] is not None:
        result = call(aten.mul.Tensor, result, a["weight"])
    if a["bias"] is not None:
        result = call(aten.add.Tensor, result, a["bias"])
    node.replace_all_uses_with(result)
    graph.erase_node(node)


_REPAIRS: dict[str, Repair] = {
    "aten::mean": _mean,
    "aten::rms_norm": _rms_norm,
    "aten::layer_norm": _layer_norm,
}
