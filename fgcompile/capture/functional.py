"""In-place ops become their functional twins, where that is the same.

`y = x.add_(z)` is `y = x + z` with every later use of x reading y, provided that no
later node reads another view of x's memory and that memory is not an input's.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

_OUTSIDE = ("placeholder", "get_attr")


def functionalize(graph_module: GraphModule) -> bool:
    """Replace the in-place ops of a graph.

    Returns:
        Whether none is left; those whose effect other nodes see through a view are.
    """
    complete = True
    for node in [node for node in graph_module.graph.nodes if is_mutable(node)]:
        twin = _functional_twin(node)
        if twin is None or not _is_private(node):
            complete = False
            continue
        mutated = node.args[0]
        assert isinstance(mutated, Node)
        later = _later(node)
        mutated.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        node.target = twin
        node._rename(re.sub(r"_(_\d+)?$", r"\1", node.name))
    return complete


def is_mutable(node: Node) -> bool:
    """Whether `node` calls an op that writes to one of its operands."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _functional_twin(node: Node) -> OpOverload | None:
    """`aten.add.Tensor` for `aten.add_.Tensor`: one write, to the first operand."""
    target = node.target
    assert isinstance(target, OpOverload)
    written = [
        a for a in target._schema.arguments if a.alias_info and a.alias_info.is_write
    ]
    if written != [target._schema.arguments[0]] or not isinstance(node.args[0], Node):
        return None
    name = target._schema.name.split("::")[1]
    packet = getattr(getattr(torch.ops, target.namespace), name.removesuffix("_"), None)
    twin = getattr(packet, target._overloadname, None)
    if twin is None or twin._schema.is_mutable:
        return None
    return twin if len(twin._schema.returns) == 1 else None


def _later(node: Node) -> set[Node]:
    found = set()
    current = node.next
    while current.op != "root":
        found.add(current)
        current = current.next
    return found


def _is_private(node: Node) -> bool:
    """Whether nobody reads the mutated memory later, but through the operand."""
    operand, later = node.args[0], _later(node)
    memory = _memory(operand)
    if memory is None:
        return False
    for other in node.graph.nodes:
        if other is node or other in later or _memory(other) != memory:
            continue
        if other.op in _OUTSIDE:
            return False
        if other is not operand and any(user in later for user in other.users):
            return False
    return True


def _memory(value: Any) -> int | None:
    tensor = value.meta.get("val") if isinstance(value, Node) else None
    if not isinstance(tensor, torch.Tensor):
        return None
    return tensor.untyped_storage()._cdata
