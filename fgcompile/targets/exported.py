"""Program -> torch.export.ExportedProgram, with the program's dynamic sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fgcompile.program import Program


def export_program(program: Program) -> torch.export.ExportedProgram:
    """`program`, exported again; its signature has the program's parameters."""
    leaves, spec = pytree.tree_flatten(list(program.inputs.values()))
    shapes = [
        _dynamic(node.meta.get("val")) for node in program.placeholders[: len(leaves)]
    ]
    dynamic = pytree.tree_unflatten(shapes, spec)
    return torch.export.export(
        program.graph_module,
        (),
        program.inputs,
        dynamic_shapes=dict(zip(program.inputs, dynamic, strict=True)),
        strict=False,
    )


def _dynamic(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return None
    return {
        dim: torch.export.Dim.AUTO
        for dim, size in enumerate(value.shape)
        if not isinstance(size, int)
    }
