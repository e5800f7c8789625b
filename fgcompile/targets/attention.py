"""Takes attention apart the way onnxruntime's CPU kernels like it.

The exporter's own way transposes the keys twice, asks for their shape in every layer,
and looks through every score of every head for NaN, which only rows without any visible
key have. Here keys are transposed in the product, and such rows are found once for all
layers that read the same mask; the results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node

from fgcompile.program import arguments

aten = torch.ops.aten


def split_attention(exported: torch.export.ExportedProgram) -> None:
    """Writes attention without a mask, or with a boolean one, as matrix products.

    Others are left to the exporter. `exported` is changed, and computes what it did:
    zero where a query sees no key.
    """
    graph = exported.graph
    masks: dict[Node | None, tuple[Node | None, Node | None]] = {None: (None, None)}
    for node in graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    ):
        parts = arguments(node)
        if not _is_plain(parts):
            continue
        with graph.inserting_before(node):
            mask = parts.get("attn_mask")
            if mask is not None and mask not in masks:
                masks[mask] = _bias(graph, mask), _sees(graph, mask)
            result = _products(graph, parts, *masks[mask])
        result.meta = {**node.meta, "val": result.meta["val"]}
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _is_plain(parts: dict[str, Any]) -> bool:
    query, mask = parts["query"].meta["val"], parts.get("attn_mask")
    unusual = ("dropout_p", "is_causal", "enable_gqa")
    return not any(parts.get(name) for name in unusual) and (
        query.is_floating_point()
        and (mask is None or mask.meta["val"].dtype is torch.bool)
    )


def _bias(graph: Graph, mask: Node) -> Node:
    return _call(graph, aten.where.Scalar, mask, 0.0, -math.inf)


def _sees(graph: Graph, mask: Node) -> Node:
    return _call(graph, aten.any.dim, mask, -1, True)


def _products(
    graph: Graph, parts: dict[str, Any], bias: Node | None, sees: Node | None
) -> Node:
    query, key = parts["query"], parts["key"]
    scale = parts.get("scale")
    if scale is None:
        scale = query.meta["val"].shape[-1] ** -0.5
    turned = _call(graph, aten.transpose.int, key, -2, -1)
    scaled = _call(graph, aten.mul.Tensor, query, scale)
    scores = _call(graph, aten.matmul.default, scaled, turned)
    if bias is not None:
        scores = _call(graph, aten.add.Tensor, scores, bias)
    weights = _call(graph, aten.softmax.int, scores, -1)
    result = _call(graph, aten.matmul.default, weights, parts["value"])
    if sees is not None:
        result = _call(graph, aten.where.ScalarOther, sees, result, 0.0)
    return result


def _call(graph: Graph, target: Callable[..., Any], *args: Any) -> Node:
    """A node with the value that the call has for its operands' values."""
    node = graph.call_function(target, args)
    values = [a.meta["val"] if isinstance(a, Node) else a for a in args]
    with next(v.fake_mode for v in values if isinstance(v, FakeTensor)):
        node.meta["val"] = target(*values)
    return node
