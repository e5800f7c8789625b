"""Replaces every parameter that loses units by the slice that survives."""

from __future__ import annotations

import torch
from torch import nn

from fgcompile.passes.shrinkage import Shrinkage, fake_like
from fgcompile.program import select


def slice_parameters(shrinkage: Shrinkage) -> None:
    """Every parameter has the sizes of its survivors; all its uses read that one."""
    program = shrinkage.program
    sliced: dict[str, torch.Tensor] = {}
    for name, index in shrinkage.flow.parameters.items():
        if shrinkage.shrinks(index):
            sliced[name] = _slice(shrinkage, name, index)
    for node in program.graph.nodes:
        if node.op == "get_attr" and str(node.target) in sliced:
            node.meta["val"] = fake_like(program, sliced[str(node.target)])


def _slice(shrinkage: Shrinkage, name: str, index: int) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    module = shrinkage.program.graph_module.get_submodule(owner)
    old = getattr(module, leaf)
    new = old.detach()
    for plane, ids in enumerate(shrinkage.flow.values[index].planes):
        dim = max(range(ids.ndim), key=lambda k: ids.shape[k])
        keep = shrinkage.survivors.positions(index, plane).reshape(-1)
        if keep.size < ids.shape[dim]:
            indices = torch.from_numpy(keep)
            new = select(new, dim, indices.to(new.device))
            _record(shrinkage, name, dim, indices)
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, leaf, parameter)
    return parameter


def _record(shrinkage: Shrinkage, name: str, dim: int, keep: torch.Tensor) -> None:
    """What is left, in terms of the original dim."""
    dims = shrinkage.program.kept.setdefault(name, {})
    dims[dim] = dims[dim][keep] if dim in dims else keep
