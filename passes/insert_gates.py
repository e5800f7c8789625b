"""Puts gates into an FX graph, as visible nodes.

A gate is one call of its module, which computes the factors, shared by all its sites;
each site is an expansion of the factors (`index_select`, where units and indices
differ) and one `fgcompile::gate`. With all gates open every node computes what it did
before, since the factors are 1.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fgcompile.errors import GateError
from fgcompile.gates.attach import adopt
from fgcompile.gates.container import ATTRIBUTE, GateContainer, Site
from fgcompile.gates.hooks import GateHook
from fgcompile.gates.spec import GateSite, GateSpec


def insert_gate_nodes(
    graph_module: GraphModule, specs: Sequence[GateSpec], container: GateContainer
) -> GraphModule:
    """Gates the nodes named by the sites of `specs`, in place.

    A site with `where="input"` gates argument `name` (a position or keyword) of its
    node, for that node only; `"output"` gates the node's result for all its users
    (item `name` of it if the result is a tuple); `"parameter"` gates the parameter
    whose `get_attr` node it names, for all its users.

    Args:
        graph_module: A graph whose nodes carry the names that the sites use.
        specs: The coupled groups that `container` was made from.
        container: Gates that act nowhere yet; the graph module owns them afterwards,
            so that its `parameters()` include theirs.

    Returns:
        The same object.

    Raises:
        GateError: If a site names a node or an argument that does not exist. The
            graph is unchanged then.
    """
    nodes = {node.name: node for node in graph_module.graph.nodes}
    described = [site for spec in specs for site in spec.sites]
    for site in described:
        _check(site, nodes)
    adopt(graph_module, container)
    values = _value_nodes(graph_module, container)
    for site, (number, placed) in zip(
        described, enumerate(container.sites), strict=True
    ):
        assert isinstance(placed, Site)
        value = values[placed.gate.name]
        _insert(graph_module, nodes[site.node], site, placed, number, value)
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module._register_deepcopy_hook(_CopyHooks())
    for mode in ("train", "eval"):
        # torch.export blocks both, as its dropout cannot switch; gates can.
        vars(graph_module).pop(mode, None)
    return graph_module


class _CopyHooks(GateHook):
    """Hooks of the root are lost when a GraphModule is copied; this renews them."""

    def __call__(self, copied: GraphModule) -> None:
        _drop_hooks(copied)
        container = getattr(copied, ATTRIBUTE)
        adopt(copied, container)


def _drop_hooks(graph_module: GraphModule) -> None:
    for hooks in (graph_module._forward_pre_hooks, graph_module._forward_hooks):
        for key in [k for k, hook in hooks.items() if isinstance(hook, GateHook)]:
            del hooks[key]


def _check(site: GateSite, nodes: dict[str, Node]) -> None:
    if site.node not in nodes:
        raise GateError(f"cannot gate {site}: the graph has no node {site.node!r}")
    if site.where == "input" and not isinstance(
        _argument(nodes[site.node], site), Node
    ):
        raise GateError(
            f"cannot gate {site}: node %{site.node} has no argument {site.name!r} "
            "that is a value of the graph"
        )


def _argument(node: Node, site: GateSite) -> Any:
    if not site.name.isdigit():
        return node.kwargs.get(site.name)
    position = int(site.name)
    return node.args[position] if position < len(node.args) else None


def _value_nodes(
    graph_module: GraphModule, container: GateContainer
) -> dict[str, Node]:
    """One node per gate that computes its factors, ahead of everything else."""
    graph = graph_module.graph
    first = next(node for node in graph.nodes if node.op != "placeholder")
    values = {}
    with graph.inserting_before(first):
        for attribute, gate in zip(
            container.gates._modules, container.each(), strict=True
        ):
            node = graph.call_module(f"{ATTRIBUTE}.gates.{attribute}")
            node.meta["val"] = gate.eval_value().detach()
            values[gate.name] = node
    return values


def _insert(
    graph_module: GraphModule,
    node: Node,
    site: GateSite,
    placed: Site,
    number: int,
    value: Node,
) -> None:
    graph = graph_module.graph
    if site.where == "input":
        with graph.inserting_before(node):
            factors = _expanded(graph_module, placed, number, value)
            gated = _gate_node(graph_module, _argument(node, site), factors, site.dim)
        if site.name.isdigit():
            node.update_arg(int(site.name), gated)
        else:
            node.update_kwarg(site.name, gated)
        return
    result = _result(node, site)
    users = list(result.users)
    with graph.inserting_after(_last(result, value)):
        # Each insertion point lies behind the one before, so build in order.
        anchor = graph.call_function(operator.pos, (result,))
    with graph.inserting_before(anchor):
        factors = _expanded(graph_module, placed, number, value)
        gated = _gate_node(graph_module, result, factors, site.dim)
    graph.erase_node(anchor)
    for user in users:
        user.replace_input_with(result, gated)


def _last(first: Node, second: Node) -> Node:
    return second if first < second else first


def _result(node: Node, site: GateSite) -> Node:
    """The node whose value is gated: `node`, or the item of it that is taken out."""
    if site.where == "parameter":
        return node
    for user in node.users:
        if user.target is operator.getitem and user.args[1] == int(site.name):
            return user
    return node


def _expanded(
    graph_module: GraphModule, placed: Site, number: int, value: Node
) -> Node:
    graph = graph_module.graph
    if placed.partial:
        one = graph.call_function(torch.ops.aten.new_ones.default, (value, [1]))
        value = graph.call_function(torch.ops.aten.cat.default, ([value, one],))
    if placed.index is None:
        return value
    index = graph.get_attr(f"{ATTRIBUTE}.sites.{number}.index")
    index.meta["val"] = placed.index
    return graph.call_function(torch.ops.aten.index_select.default, (value, 0, index))


def _gate_node(graph_module: GraphModule, x: Node, factors: Node, dim: int) -> Node:
    node = graph_module.graph.call_function(
        torch.ops.fgcompile.gate.default, (x, factors, dim)
    )
    node.meta.update(x.meta)
    return node
