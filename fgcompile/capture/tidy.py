"""What tracing leaves behind and a program does not need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

aten = torch.ops.aten

_ASSERTIONS = {
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
    torch._check,
    torch._check_is_size,
}


def remove_assertions(graph_module: GraphModule) -> bool:
    """Erase the checks that tracing adds; they compute nothing that is used."""
    found = [
        node
        for node in graph_module.graph.nodes
        if node.target in _ASSERTIONS or is_guard(graph_module, node)
    ]
    for node in found:
        graph_module.graph.erase_node(node)
    return bool(found)


def is_guard(graph_module: GraphModule, node: Node) -> bool:
    """Whether `node` calls the module in which torch.export keeps input checks."""
    if node.op != "call_module" or node.users:
        return False
    return type(graph_module.get_submodule(str(node.target))).__name__ == "GuardsFn"


_SAME = {
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh.default,
}
_CASTS = {
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
}
_DROPOUTS = {
    aten.alpha_dropout.default,
    aten.dropout.default,
    aten.feature_dropout.default,
}
_COPIES = {aten.lift_fresh_copy.default}


def remove_identities(graph_module: GraphModule) -> bool:
    """Bypass ops that return their operand: the same values in the same memory."""
    return _bypass(graph_module, _is_identity)


def remove_copies(graph_module: GraphModule) -> bool:
    """Bypass copies of constants; only in-place ops could tell them apart."""
    return _bypass(graph_module, lambda node: node.target in _COPIES)


def _bypass(graph_module: GraphModule, found: Callable[[Node], bool]) -> bool:
    before = len(graph_module.graph.nodes)
    for node in list(graph_module.graph.nodes):
        if found(node):
            operand = node.args[0]
            assert isinstance(operand, Node)
            node.replace_all_uses_with(operand)
            graph_module.graph.erase_node(node)
    return len(graph_module.graph.nodes) < before


def _is_identity(node: Node) -> bool:
    if node.target in _SAME:
        return True
    if node.target in _CASTS:
        return _keeps_type(node)
    if node.target in _DROPOUTS:
        return bool(node.args[1] == 0 or not node.args[2])
    if node.target is aten.copy_.default:
        # `self.table = self.table.to(device)`, where it is on the device already.
        return node.args[0] is node.args[1]
    return node.target is aten.slice.Tensor and _takes_all(node)


def _keeps_type(node: Node) -> bool:
    before, after = _value(node.args[0]), _value(node)
    if not (isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)):
        return False
    plain = not any(
        value is True or isinstance(value, torch.memory_format)
        for value in (*node.args[1:], *node.kwargs.values())
    )
    same = before.dtype == after.dtype and before.device == after.device
    return plain and bool(same)


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, Node) else None


def _takes_all(node: Node) -> bool:
    given: list[Any] = list(node.args)
    start, end, step = (given + [None, 0, None, None, 1][len(given) :])[2:]
    whole = end is None or (isinstance(end, int) and end == sys.maxsize)
    first = start is None or (isinstance(start, int) and start == 0)
    return not node.kwargs and first and whole and bool(step == 1)


def settle_sizes(graph_module: GraphModule) -> None:
    """Symbols that tracing found to be one number are numbers in every `val`."""
    for node in graph_module.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(_settled, node.meta["val"])


def _settled(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        number = value.node.maybe_as_int()
        return value if number is None else number
    if not isinstance(value, FakeTensor):
        return value
    shape = [_settled(size) for size in value.shape]
    if not any(
        isinstance(old, torch.SymInt) and isinstance(new, int)
        for old, new in zip(value.shape, shape, strict=True)
    ):
        return value
    with value.fake_mode:
        return torch.empty_strided(
            shape,
            [_settled(stride) for stride in value.stride()],
            dtype=value.dtype,
            device=value.device,
            requires_grad=value.requires_grad,
        )
