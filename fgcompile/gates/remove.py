"""Taking gates off a model again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import GraphModule, Node

from fgcompile.errors import GateError
from fgcompile.gates.access import container_of, owner_of
from fgcompile.gates.fold import fold_gates
from fgcompile.gates.hooks import GateHook, InputHook, ParameterHook

ModuleT = TypeVar("ModuleT", bound=nn.Module)

GATE = torch.ops.fgcompile.gate.default


def remove_gates(model: ModuleT, fold: bool = False) -> ModuleT:
    """Takes every trace of the gates off `model`, in place.

    Args:
        model: A gated model.
        fold: Whether to multiply the eval factors into the weights first, so that
            the plain model computes what the gated one does in eval.

    Returns:
        The same object.

    Raises:
        GateError: If there are no gates, or a factor cannot be folded exactly. The
            model is unchanged then.
    """
    container = container_of(model)
    container.settle()
    graphs = [m for m in model.modules() if isinstance(m, GraphModule)]
    if fold:
        _refuse_graphs(graphs)
        fold_gates(owner_of(model, container), container)
    for graph_module in graphs:
        _strip_nodes(graph_module)
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, (InputHook, ParameterHook)):
                hook.reset(module)
        drop_hooks(module, lambda hook: isinstance(hook, GateHook))
        for name in [n for n, m in module._modules.items() if m is container]:
            del module._modules[name]
    return model


def _refuse_graphs(graphs: list[GraphModule]) -> None:
    for graph_module in graphs:
        if any(node.target is GATE for node in graph_module.graph.nodes):
            raise GateError(
                "cannot fold gates that are nodes of a GraphModule\n"
                "  Lower it: fgcompile.lower(model) folds what can be folded."
            )


def _strip_nodes(graph_module: GraphModule) -> None:
    """Takes the gate nodes, and what computes their factors, out of a graph."""
    graph = graph_module.graph
    for node in [node for node in graph.nodes if node.target is GATE]:
        value, factors = node.args[:2]
        assert isinstance(value, Node), node
        assert isinstance(factors, Node), node
        node.replace_all_uses_with(value)
        graph.erase_node(node)
        _erase_unused(factors)
    hooks = graph_module._deepcopy_hooks
    hooks[:] = [hook for hook in hooks if not isinstance(hook, GateHook)]
    graph_module.recompile()


def _erase_unused(node: Node) -> None:
    """Erases `node`, and what only it used."""
    if not node.users and node.op != "placeholder":
        inputs = node.all_input_nodes
        node.graph.erase_node(node)
        for unused in inputs:
            _erase_unused(unused)


def drop_hooks(module: nn.Module, chosen: Callable[[Any], bool]) -> None:
    """Takes the chosen forward hooks and forward pre-hooks off a module."""
    own = {
        key
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for key, hook in hooks.items()
        if chosen(hook)
    }
    for kept in (
        module._forward_pre_hooks,
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ):
        for key in own & kept.keys():
            del kept[key]
