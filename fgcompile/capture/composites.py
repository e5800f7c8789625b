"""Operators that only call others, where no rule describes them.

`aten.subtract` is `aten.sub`, `aten.tensordot` is views and a matrix product,
`aten.cosine_similarity` is norms, a product and a sum. What no rule knows is taken
apart if rules know all of its parts; else it stays whole and is named as it was called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fgcompile.capture.functional import functionalize
from fgcompile.capture.shapes import dynamic_sizes
from fgcompile.capture.state import silence
from fgcompile.capture.subgraphs import inline_call
from fgcompile.rules.movement import is_movement
from fgcompile.rules.registry import JOINS, is_pointwise, rule_for
from fgcompile.rules.shapes import operands_of, tensor_of

_MOST_PARTS = 50
"""A loop that was written out, such as a recurrent layer, has more."""


def take_apart(graph_module: GraphModule) -> bool:
    """Replaces unknown operators by the known ones that they call; whether any were."""
    modified = False
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or _is_known(node) or not _is_composite(node):
            continue
        parts = _parts(node)
        if parts is not None:
            inline_call(graph_module, node, parts, operands_of(node))
            modified = True
    return modified


def _is_known(node: Node) -> bool:
    """Whether a rule describes what `node` does to units, or none has a part in it."""
    if not isinstance(node.target, OpOverload):
        return True
    if _mode(node) is None or not any(map(_may_vary, operands_of(node))):
        return True
    return (
        rule_for(node.target) is not None
        or is_pointwise(node.target)
        or is_movement(node)
        or node.target._schema.name in JOINS
    )


def _mode(node: Node) -> FakeTensorMode | None:
    """The mode of the tensors that `node` computes, None if it computes none."""
    results = pytree.tree_leaves(node.meta.get("val"))
    return next((r.fake_mode for r in results if isinstance(r, FakeTensor)), None)


def _may_vary(node: Node) -> bool:
    """Whether it is a value or a mask of values; integers are places, not units."""
    tensor = tensor_of(node)
    if tensor is None:
        return False
    return tensor.is_floating_point() or tensor.dtype == torch.bool


def _is_composite(node: Node) -> bool:
    target = node.target
    assert isinstance(target, OpOverload)
    return target.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)


def _parts(node: Node) -> GraphModule | None:
    """What `node` calls, as a function of its operands; None if that is not known."""
    values = [operand.meta["val"] for operand in operands_of(node)]

    def call(*values: Any) -> Any:
        remaining = iter(values)
        args, kwargs = torch.fx.map_arg(
            (node.args, node.kwargs), lambda _: next(remaining)
        )
        return node.target(*args, **kwargs)  # type: ignore[operator]

    mode = _mode(node)
    assert mode is not None
    try:
        with silence(), mode, torch.no_grad(), dynamic_sizes(mode.shape_env):
            parts = make_fx(call)(*values)
    except Exception:  # any kernel may complain in its own way
        return None
    parts.graph.eliminate_dead_code()
    calls = [each for each in parts.graph.nodes if each.op == "call_function"]
    if len(calls) > _MOST_PARTS or not functionalize(parts):
        return None
    place = {key: value for key, value in node.meta.items() if key != "val"}
    for each in calls:
        each.meta = {**place, "val": each.meta["val"]}
    return parts if all(map(_is_known, calls)) else None
