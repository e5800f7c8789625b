"""Rewrites the sizes and positions that nodes were given as arguments.

A graph spells sizes out: `view(x, [b, s, 12, 64])`. After units went, each such
argument is recomputed from the survivors. That the result is right is not
argued here but proven afterwards, by running the new graph on planes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from fgcompile.passes.shrinkage import Shrinkage, new_buffer, scaled
from fgcompile.program import arguments
from fgcompile.rules.registry import operand
from fgcompile.rules.shapes import tensor_of

aten = torch.ops.aten
Rewrite = Callable[[Shrinkage, Node], None]


def rewrite_sizes(shrinkage: Shrinkage) -> None:
    """Every argument that is a size or a position along a dim that shrinks is right."""
    for node in list(shrinkage.program.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        rewrite = _REWRITES.get(schema.name) if schema is not None else None
        if rewrite is not None and _touches(shrinkage, node):
            with shrinkage.program.graph.inserting_before(node):
                rewrite(shrinkage, node)


def _touches(shrinkage: Shrinkage, node: Node) -> bool:
    values = list(shrinkage.values.get(node.name, ()))
    values += [shrinkage.index(n) for n in node.all_input_nodes]
    return any(v is not None and shrinkage.shrinks(v) for v in values)


def _view(shrinkage: Shrinkage, node: Node) -> None:
    """view(x, sizes), expand(x, sizes)."""
    sizes = list(node.args[1])  # type: ignore[arg-type]
    node.update_arg(1, _resized(shrinkage, node, sizes, 0))


def _unflatten(shrinkage: Shrinkage, node: Node) -> None:
    """unflatten(x, dim, sizes)."""
    a = arguments(node)
    source = tensor_of(a["self"])
    assert source is not None
    start = a["dim"] % source.dim()
    node.update_arg(2, _resized(shrinkage, node, list(a["sizes"]), start))


def _resized(
    shrinkage: Shrinkage, node: Node, sizes: list[Any], start: int
) -> list[Any]:
    index = shrinkage.index(node)
    if index is None:
        return sizes
    before, after = shrinkage.flow.values[index].shape, shrinkage.sizes(index)
    result = []
    for k, size in enumerate(sizes, start):
        if before[k] == after[k] or (isinstance(size, int) and size == -1):
            result.append(size)
        elif isinstance(size, int):
            result.append(after[k])
        else:
            result.append(scaled(shrinkage.program, size, before[k], after[k]))
    return result


def _split(shrinkage: Shrinkage, node: Node) -> None:
    """Any split, as split_with_sizes, where the dim that is split shrinks."""
    a = arguments(node)
    dim = a["dim"]
    source = shrinkage.index(operand(node))
    if source is None:
        return
    dim %= len(shrinkage.flow.values[source].shape)
    if shrinkage.sizes(source)[dim] == shrinkage.flow.values[source].shape[dim]:
        return
    parts = [
        shrinkage.sizes(v)[dim] for v in shrinkage.values[node.name] if v is not None
    ]
    node.target = aten.split_with_sizes.default
    node.args, node.kwargs = (node.args[0], parts, dim), {}


def _slice(shrinkage: Shrinkage, node: Node) -> None:
    a = arguments(node)
    found = _row(shrinkage, node, a["dim"])
    if found is None:
        return
    dim, row = found
    if not row:
        node.args, node.kwargs = (node.args[0], dim, 0, 0), {}
        return
    start, step = row[0], (row[1] - row[0] if len(row) > 1 else 1)
    if step > 0 and row == list(range(start, row[-1] + 1, step)):
        node.target = aten.slice.Tensor
        node.args, node.kwargs = (node.args[0], dim, start, row[-1] + 1, step), {}
    else:
        _select_rows(shrinkage, node, dim, row)


def _index_select(shrinkage: Shrinkage, node: Node) -> None:
    found = _row(shrinkage, node, arguments(node)["dim"])
    if found is not None:
        _select_rows(shrinkage, node, *found)


def _index(shrinkage: Shrinkage, node: Node) -> None:
    """An index along one shrinking dim, in terms of what is left of it."""
    indices = list(arguments(node)["indices"])
    for dim, index in enumerate(indices):
        link = shrinkage.link(node, dim) if index is not None else None
        if link is None:
            continue
        rows = shrinkage.row(link, dim)
        if rows is not None:
            shape = index.meta["val"].shape
            tensor = torch.tensor(rows)
            tensor = (
                tensor.reshape(shape) if tensor.numel() == shape.numel() else tensor
            )
            indices[dim] = new_buffer(shrinkage.program, "index", tensor, node)
    node.update_arg(1, indices)


def _select_rows(shrinkage: Shrinkage, node: Node, dim: int, row: list[int]) -> None:
    index = new_buffer(shrinkage.program, "index", torch.tensor(row), node)
    node.target = aten.index_select.default
    node.args, node.kwargs = (node.args[0], dim, index), {}


def _select(shrinkage: Shrinkage, node: Node) -> None:
    found = _row(shrinkage, node, arguments(node)["dim"])
    if found is not None:
        dim, row = found
        node.args, node.kwargs = (node.args[0], dim, row[0]), {}


def _row(shrinkage: Shrinkage, node: Node, dim: int) -> tuple[int, list[int]] | None:
    tensor = tensor_of(operand(node))
    assert tensor is not None
    dim %= tensor.dim()
    link = shrinkage.link(node, dim)
    row = shrinkage.row(link, dim) if link is not None else None
    return None if row is None else (dim, row)


def _squeeze(shrinkage: Shrinkage, node: Node) -> None:
    """Names the dims that were of size 1, since others may be so now."""
    before = tensor_of(operand(node))
    assert before is not None
    dims = arguments(node).get("dim", list(range(before.dim())))
    dims = [dims] if isinstance(dims, int) else dims
    ones = [d for d in dims if isinstance(n := before.shape[d], int) and n == 1]
    node.target = aten.squeeze.dims
    node.args = (node.args[0], ones)


def _layer_norm(shrinkage: Shrinkage, node: Node) -> None:
    index = shrinkage.index(node)
    if index is not None:
        count = len(node.args[1])  # type: ignore[arg-type]
        node.update_arg(1, list(shrinkage.sizes(index)[-count:]))


def _convolution(shrinkage: Shrinkage, node: Node) -> None:
    """Groups shrink with the channels, if they are what the channels are made of."""
    a = arguments(node)
    if a["groups"] == 1:
        return
    step = shrinkage.aligned(node)[0]
    weight = shrinkage.index(a["weight"])
    output = shrinkage.index(node)
    if weight is None or output is None:
        return
    inner = shrinkage.sizes(weight)[1]
    source = shrinkage.index(a["input"])
    channels = (
        shrinkage.sizes(source)[1]
        if source is not None
        else step.sizes[step.factors.index("g")] * inner
    )
    node.args = (*tuple(a.values())[:-1], channels // inner)
    node.kwargs = {}


def _attention(shrinkage: Shrinkage, node: Node) -> None:
    """The scale stays that of the original head size."""
    a = arguments(node)
    query = tensor_of(a["query"])
    assert query is not None
    if a.get("scale") is None:
        node.kwargs = {**node.kwargs, "scale": 1 / math.sqrt(int(query.shape[-1]))}


_REWRITES: dict[str, Rewrite] = {
    **dict.fromkeys(("aten::view", "aten::reshape", "aten::_unsafe_view"), _view),
    "aten::expand": _view,
    "aten::unflatten": _unflatten,
    **dict.fromkeys(("aten::split", "aten::split_with_sizes", "aten::chunk"), _split),
    **dict.fromkeys(("aten::unsafe_split", "aten::unsafe_chunk"), _split),
    "aten::tensor_split": _split,
    **dict.fromkeys(("aten::slice", "aten::narrow"), _slice),
    "aten::select": _select,
    "aten::index": _index,
    "aten::index_select": _index_select,
    "aten::squeeze": _squeeze,
    **dict.fromkeys(("aten::layer_norm", "aten::rms_norm"), _layer_norm),
    **dict.fromkeys(("aten::conv1d", "aten::conv2d", "aten::conv3d"), _convolution),
    "aten::scaled_dot_product_attention": _attention,
}
