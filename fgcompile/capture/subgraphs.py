"""Inlining: a graph that calls other graphs becomes one flat graph.

torch.export wraps regions with a changed mode (`torch.no_grad`, autocast) in a
higher-order op that calls a sub-graph with its operands. The mode says nothing about
the values that inference computes, except for autocast, whose casts are explicit in
the sub-graph when it is disabled and absent when it is enabled; an enabled one is
therefore left to the caller to refuse.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fgcompile.capture.tidy import remove_assertions
from fgcompile.errors import CaptureError

_HIGHER_ORDER = torch.ops.higher_order


def _after_mode(count: int) -> Callable[[Node], tuple[Any, tuple[Any, ...]]]:
    def split(node: Node) -> tuple[Any, tuple[Any, ...]]:
        return node.args[count], node.args[count + 1 :]

    return split


# Higher-order op -> (sub-graph, its operands), read off the call's arguments.
_CALLS: dict[Any, Callable[[Node], tuple[Any, tuple[Any, ...]]]] = {
    _HIGHER_ORDER.wrap_with_set_grad_enabled: _after_mode(1),
    _HIGHER_ORDER.wrap_with_autocast: _after_mode(4),
}


def inline_subgraphs(graph_module: GraphModule) -> bool:
    """Replace every call of a sub-graph by the sub-graph's nodes.

    Returns:
        Whether the graph changed.

    Raises:
        CaptureError: If a sub-graph runs under an enabled autocast.
    """
    modified = False
    while calls := [node for node in graph_module.graph.nodes if _is_call(node)]:
        for node in calls:
            _inline(graph_module, node)
        modified = True
    if modified:
        remove_assertions(graph_module)
        graph_module.graph.eliminate_dead_code()
        graph_module.delete_all_unused_submodules()
        graph_module.recompile()
    return modified


def _is_call(node: Node) -> bool:
    return node.op == "call_module" or node.target in _CALLS


def _callee(graph_module: GraphModule, node: Node) -> tuple[GraphModule, list[Any]]:
    if node.op == "call_module":
        module, operands = graph_module.get_submodule(str(node.target)), node.args
    else:
        if node.target is _HIGHER_ORDER.wrap_with_autocast and node.args[2]:
            raise CaptureError(
                f"cannot inline an enabled autocast region at %{node.name}\n"
                "  Capture the model outside of autocast, in the dtype it shall run in."
            )
        callee, operands = _CALLS[node.target](node)
        module = graph_module.get_submodule(str(callee.target))
    if not isinstance(module, GraphModule):
        raise CaptureError(
            f"cannot inline module {node.target} of type {type(module).__name__}\n"
            "  Pass the nn.Module itself, so that it can be traced to ATen ops."
        )
    return module, list(operands)


def _inline(graph_module: GraphModule, call: Node) -> None:
    callee, operands = _callee(graph_module, call)
    inline_call(graph_module, call, callee, operands)


def inline_call(
    graph_module: GraphModule, call: Node, callee: GraphModule, operands: list[Any]
) -> None:
    """Replace `call` by the nodes of `callee`, whose placeholders are `operands`.

    Raises:
        CaptureError: If a node uses all of several results at once.
    """
    inner = [node for node in callee.graph.nodes if node.op == "placeholder"]
    value_map: dict[Node, Any] = dict(zip(inner, operands, strict=True))
    with graph_module.graph.inserting_before(call):
        for node in callee.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                results = torch.fx.map_arg(node.args[0], value_map.__getitem__)
                break
            if node.op == "get_attr":
                _share_attribute(graph_module, callee, node)
            value_map[node] = graph_module.graph.node_copy(node, value_map.__getitem__)
    _replace_call(call, results)


def _share_attribute(target: GraphModule, source: GraphModule, node: Node) -> None:
    """Make `source`'s attribute reachable in `target`, under a free name."""
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(source.get_submodule(owner), name)
    free = str(node.target).replace(".", "_")
    while hasattr(target, free):
        if getattr(target, free) is value:
            break
        free += "_"
    else:
        if isinstance(value, torch.Tensor) and not isinstance(
            value, torch.nn.Parameter
        ):
            target.register_buffer(free, value, persistent=False)
        else:
            setattr(target, free, value)
    node.target = free


def _replace_call(call: Node, results: Any) -> None:
    graph = call.graph
    if isinstance(results, Node):
        call.replace_all_uses_with(results)
    else:
        for user in list(call.users):
            if user.target is not operator.getitem:
                raise CaptureError(f"%{user.name} uses all results of %{call.name}")
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(call)
