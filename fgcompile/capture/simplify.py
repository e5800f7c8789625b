"""One plain form for operators that say the same in a roundabout way.

Sizes that are copied from another tensor are named, a slice assignment that fills a
new tensor is a concatenation, and so on: what is left are operators of which each
element is made of elements that a rule can point at.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Node

from fgcompile.capture.layer_norms import as_one_operator
from fgcompile.program import arguments

aten = torch.ops.aten


def simplify(graph_module: GraphModule) -> bool:
    """Rewrites what has a plainer form; whether anything had.

    A node that is rewritten keeps its name.
    """
    modified = False
    for node in list(graph_module.graph.nodes):
        rewrite = _REWRITES.get(node.target) if node.op == "call_function" else None
        if rewrite is not None:
            with graph_module.graph.inserting_before(node):
                modified |= rewrite(node)
    return modified


def _type_as(node: Node) -> bool:
    """`x.type_as(y)` is `x.to(dtype)` on one device."""
    before, after = _tensor(node.args[0]), _tensor(node)
    if before.device != after.device:
        return False
    node.target, node.args = aten.to.dtype, (node.args[0], after.dtype)
    return True


def _sizes_as(node: Node) -> bool:
    """`x.view_as(y)` is `x.view(sizes)`; -1 keeps a size of `expand`."""
    source, like = node.args[:2]
    assert isinstance(like, Node)
    expands = node.target is aten.expand_as.default
    before, after = _tensor(source), _tensor(node)
    sizes: list[Any] = []
    for dim, size in enumerate(after.shape):
        old = dim - after.dim() + before.dim()
        if expands and old >= 0 and str(before.shape[old]) == str(size):
            sizes.append(-1)
        else:
            sizes.append(size if isinstance(size, int) else _size(like, dim))
    node.target = aten.expand.default if expands else aten.reshape.default
    node.args = (source, sizes)
    return True


def _size(node: Node, dim: int) -> Node:
    size = node.graph.call_function(aten.sym_size.int, (node, dim))
    size.meta["val"] = _tensor(node).shape[dim]
    return size


def _cat(node: Node) -> bool:
    """Tensors of one dim without elements, which `cat` ignores, are left out."""
    tensors = node.args[0]
    assert isinstance(tensors, (list, tuple))
    # As text, since a size that depends on values cannot be compared with a number.
    kept = [n for n in tensors if [*map(str, _tensor(n).shape)] != ["0"]]
    if len(kept) in (0, len(tensors)):
        return False
    if len(kept) > 1:
        node.update_arg(0, kept)
    elif _tensor(kept[0]).dtype == _tensor(node).dtype:
        (only,) = kept
        assert isinstance(only, Node)
        node.replace_all_uses_with(only)
    return True


def _slice_scatter(node: Node) -> bool:
    """Slices that together make up a whole tensor are its parts."""
    dim, size = _dim(node), _tensor(node).shape[_dim(node)]
    parts: dict[int, Node] = {}
    filled: list[int] = []
    current: Any = node
    while isinstance(current, Node) and current.target is aten.slice_scatter.default:
        where = _positions(current)
        source = current.args[1]
        if not where or _dim(current) != dim or not isinstance(source, Node):
            return False
        parts[where[0]] = source
        filled += where
        current = current.args[0]
    # What a later slice wrote over is not told apart.
    if sorted(filled) != list(range(size)):
        return False
    node.target, node.kwargs = aten.cat.default, {}
    node.args = ([parts[start] for start in sorted(parts)], dim)
    return True


def _dim(node: Node) -> int:
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    return dim % _tensor(node).dim()


def _positions(node: Node) -> range | None:
    """Where a slice lies along its dim; None where that is dynamic, or in steps."""
    names = ("dim", "start", "end", "step")
    given: dict[str, Any] = dict(zip(names, node.args[2:], strict=False))
    given |= node.kwargs
    start, stop = given.get("start") or 0, given.get("end")
    stop = sys.maxsize if stop is None else stop
    size = _tensor(node).shape[_dim(node)]
    fixed = all(isinstance(n, int) for n in (size, start, stop))
    if given.get("step", 1) != 1 or not fixed:
        return None
    return range(size)[start:stop]


def _copy(node: Node) -> bool:
    """What is written over all of a tensor is that tensor."""
    source = node.args[1]
    before, after = _tensor(source), _tensor(node)
    assert isinstance(source, Node)
    same = list(map(str, before.shape)) == list(map(str, after.shape))
    if not same or before.device != after.device or node.kwargs:
        return False
    if before.dtype == after.dtype:
        node.replace_all_uses_with(source)
    else:
        node.target, node.args = aten.to.dtype, (source, after.dtype)
    return True


def _glu(node: Node) -> bool:
    """One half of the channels, gated by the other."""
    source = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
    halves = call_like(node, aten.chunk.default, source, 2, dim)
    one, other = (call_like(node, operator.getitem, halves, k) for k in range(2))
    gate = call_like(node, aten.sigmoid.default, other)
    node.target, node.args, node.kwargs = aten.mul.Tensor, (one, gate), {}
    return True


def _norm(node: Node) -> bool:
    """A norm over all dims names them; torch's ONNX exporter drops them otherwise."""
    a = arguments(node)
    rank = _tensor(a["self"]).dim()
    if a["dim"] is not None or not rank:
        return False
    node.args = (a["self"], a["ord"], list(range(rank)), a["keepdim"])
    node.kwargs = {"dtype": a["dtype"]}
    return True


def _product(node: Node) -> bool:
    """Once a value is that value (`1 / x` is traced so); a layer norm may end here."""
    a = arguments(node)
    source, factor = a["self"], a["other"]
    once = not isinstance(factor, Node) and factor == 1
    if once and _tensor(source).dtype == _tensor(node).dtype:
        node.replace_all_uses_with(source)
        return True
    return _quotient(node)


def _quotient(node: Node) -> bool:
    return as_one_operator(node, partial(call_like, node))


def call_like(like: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A node at the insertion point, from the same place as `like`."""
    node = like.graph.call_function(target, args, kwargs)
    node.meta = {k: v for k, v in like.meta.items() if k != "val"}
    values = torch.fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    with _tensor(like).fake_mode, enable_python_dispatcher():  # type: ignore[attr-defined]
        node.meta["val"] = target(*values[0], **values[1])
    return node


def _tensor(node: Any) -> torch.Tensor:
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)
    return value


_REWRITES: dict[Any, Callable[[Node], bool]] = {
    aten.type_as.default: _type_as,
    **dict.fromkeys((aten.view_as.default, aten.reshape_as.default), _sizes_as),
    aten.expand_as.default: _sizes_as,
    aten.cat.default: _cat,
    aten.slice_scatter.default: _slice_scatter,
    aten.copy.default: _copy,
    aten.glu.default: _glu,
    aten.linalg_vector_norm.default: _norm,
    aten.mul.Tensor: _product,
    aten.div.Tensor: _quotient,
}
