"""Program -> torch.export.ExportedProgram, with the program's dynamic sizes."""

from __future__ import annotations

import io
from copy import copy as copy_codegen
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fgcompile.capture.memory import remember_trace
from fgcompile.program import Program

_PLAIN = (dict, list, tuple)


def export_program(program: Program) -> torch.export.ExportedProgram:
    """`program`, exported again; its signature has the program's parameters."""
    leaves, spec = pytree.tree_flatten(list(program.inputs.values()))
    shapes = [
        _dynamic(node.meta.get("val")) for node in program.placeholders[: len(leaves)]
    ]
    dynamic = pytree.tree_unflatten(shapes, spec)
    exported = torch.export.export(
        program.graph_module,
        (),
        program.inputs,
        dynamic_shapes=dict(zip(program.inputs, dynamic, strict=True)),
        strict=False,
    )
    remember_trace(exported.graph.nodes)
    return exported


def save_program(program: Program, file: Path) -> None:
    """Writes `program` to `file` (.pt2), which any process with torch loads and runs.

    Outputs in a class of a library, such as a transformers ModelOutput, come in a dict
    of their names instead: torch.export.load knows no other classes than Python's.
    """
    program = _with_own_memory(_with_plain_outputs(program))
    # Not to the file itself: on a full disk torch's writer ends the whole process.
    content = io.BytesIO()
    torch.export.save(export_program(program), content)
    file.write_bytes(content.getbuffer())


def _with_own_memory(program: Program) -> Program:
    """Parts of larger tensors are copied: a file would hold those as a whole."""
    nodes = program.graph.find_nodes(op="get_attr")
    parts = [node for node in nodes if _is_part(program.parameter(node))]
    if not parts:
        return program
    copy = program.copy()
    for node in parts:
        tensor = copy.parameter(node)
        owner, _, name = str(node.target).rpartition(".")
        module = copy.graph_module.get_submodule(owner)
        own = tensor.detach().clone(memory_format=torch.contiguous_format)
        if isinstance(tensor, nn.Parameter):
            own = nn.Parameter(own, tensor.requires_grad)
        setattr(module, name, own)
    copy.graph_module.recompile()
    return copy


def _is_part(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


def _with_plain_outputs(program: Program) -> Program:
    info = getattr(program.graph._codegen, "pytree_info", None)
    if info is None or info.out_spec is None or _is_plain(info.out_spec):
        return program
    copy = program.copy()
    codegen: Any = copy_codegen(program.graph._codegen)
    spec = pytree.tree_structure(dict.fromkeys(program.output_names, 0))
    codegen.pytree_info = info._replace(out_spec=spec)
    copy.graph.set_codegen(codegen)
    copy.graph_module.recompile()
    return copy


def _is_plain(spec: pytree.TreeSpec) -> bool:
    """Whether a nest of outputs is of Python's own classes."""
    own = spec.is_leaf() or spec.type in _PLAIN
    return own and all(map(_is_plain, spec.children()))


def _dynamic(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return None
    return {
        dim: torch.export.Dim.AUTO
        for dim, size in enumerate(value.shape)
        if not isinstance(size, int)
    }
