"""Every tensor has one name, however many modules hold it."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule, Node


def merge_tied_tensors(graph_module: GraphModule, model: nn.Module) -> dict[str, str]:
    """Read every tensor under one name only: its first one in `model`.

    Returns:
        Other names of tensors that have several -> the name that is read.
    """
    canonical, aliases = _names(model)
    first: dict[str, Node] = {}
    for node in list(graph_module.graph.nodes):
        if node.op != "get_attr":
            continue
        name = str(node.target)
        tensor = _lookup(graph_module, name)
        node.target = canonical.get(id(tensor), name)
        if node.target != name:
            _assign(graph_module, str(node.target), tensor)
        kept = first.setdefault(str(node.target), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            graph_module.graph.erase_node(node)
    for name in aliases:
        _delete(graph_module, name)
    return aliases


def _names(model: nn.Module) -> tuple[dict[int, str], dict[str, str]]:
    canonical: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        kept = canonical.setdefault(id(tensor), name)
        if kept != name:
            aliases[name] = kept
    return canonical, aliases


def _lookup(root: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


def _assign(root: nn.Module, path: str, tensor: object) -> None:
    owner, _, name = path.rpartition(".")
    module = root
    for part in owner.split(".") if owner else []:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if isinstance(tensor, torch.Tensor) and not isinstance(tensor, nn.Parameter):
        module.register_buffer(name, tensor)
    else:
        setattr(module, name, tensor)


def _delete(root: nn.Module, path: str) -> None:
    owner, _, name = path.rpartition(".")
    try:
        delattr(root.get_submodule(owner), name)
    except AttributeError:
        return
