"""A summary of anything that holds a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from fgcompile.errors import CaptureError, FgcompileError, FormatError
from fgcompile.program import Program
from fgcompile.report.load_folder import find_graph, load_weights
from fgcompile.report.load_onnx import load_onnx, summarize_onnx
from fgcompile.report.load_program import (
    as_array,
    load_pt2,
    reading_pt2,
    summarize_program,
)
from fgcompile.report.summary import Group, ModelSummary, Parameter

Shapes = Mapping[str, tuple[int, ...]]
Inputs = tuple[Any, ...] | dict[str, Any] | None
_NOT_TRACED = (
    "only parameters were compared: without example_inputs {name} was not traced"
)


def summarize(
    source: Any,
    example_inputs: Inputs = None,
    shapes: Shapes = {},  # noqa: B006
) -> ModelSummary:
    """Summary of a model, wherever it lives.

    Args:
        source: A ModelSummary, Program, nn.Module, GraphModule, ExportedProgram,
            ONNX model, lowered model, or the path of an `.onnx` file, a `.pt2` file,
            a `.safetensors` file or a saved folder.
        example_inputs: Inputs of `forward`, to trace an nn.Module with; transformers
            models need none.
        shapes: Input shapes to count MACs at, by input name. Other inputs count as
            one sample of length 128 where they are dynamic.

    Raises:
        FormatError: If a file is missing, damaged or of another kind.
        CaptureError: If a module cannot be traced.
    """
    if isinstance(source, ModelSummary):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _load_path(Path(source), shapes)
    if isinstance(source, Program):
        return _with_groups(summarize_program(source, shapes), source)
    if isinstance(source, ExportedProgram):
        source = _as_module(source)
    if isinstance(source, nn.Module):
        return _summarize_module(source, example_inputs, shapes)
    if type(source).__name__ == "ModelProto":
        return summarize_onnx(source, None, shapes)
    program = getattr(source, "program", None)
    if isinstance(program, Program):  # what `lower` returns
        in_torch = isinstance(source.model, nn.Module)
        return summarize(program if in_torch else source.model, None, shapes)
    raise CaptureError(
        f"cannot read a model from an object of type {type(source).__name__}\n"
        "  Give a module, an exported program, an ONNX model, or a path."
    )


def _as_module(program: ExportedProgram) -> nn.Module:
    """The program's graph, without the checks that tracing put in."""
    from fgcompile.capture.tidy import remove_assertions

    module = program.module(check_guards=False)
    if isinstance(module, GraphModule):
        remove_assertions(module)
    return module


def _load_path(path: Path, shapes: Shapes) -> ModelSummary:
    if path.is_dir():
        graph = find_graph(path)
        return load_weights(path) if graph is None else _load_path(graph, shapes)
    if path.suffix == ".pt2":
        program = load_pt2(path)
        with reading_pt2(path):
            return summarize(program, None, shapes)
    if path.suffix == ".safetensors" and path.is_file():
        from fgcompile.report.load_folder import NO_GRAPH, read_safetensors

        stored = {p.name: p for p in read_safetensors(path)}
        return ModelSummary("parameters", parameters=stored, notes=(NO_GRAPH,))
    if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
        raise FormatError(
            f"{path.name} is a pickle, which runs code when it is opened\n"
            "  Save the model as .safetensors, .onnx or .pt2, and compare that."
        )
    return load_onnx(path, shapes)


def _summarize_module(
    module: nn.Module, example_inputs: Inputs, shapes: Shapes
) -> ModelSummary:
    from fgcompile.capture import capture
    from fgcompile.capture.inputs import is_transformers_model
    from fgcompile.capture.trace import is_aten_graph

    traceable = is_aten_graph(module) or is_transformers_model(module)
    if example_inputs is None and not traceable:
        return _parameters_only(module)
    program = capture(module, example_inputs)
    return _with_groups(summarize_program(program, shapes), program)


def _with_groups(summary: ModelSummary, program: Program) -> ModelSummary:
    """The summary, with the names that the coupling analysis gives its groups."""
    from fgcompile.analysis.coupling import find_groups

    try:
        found = find_groups(program).groups
    except FgcompileError:
        return summary  # an op the analysis refuses: the pair itself still tells
    groups = tuple(
        Group(g.name, g.kind, g.size, tuple((m.parameter, m.dim) for m in g.members))
        for g in found
    )
    return replace(summary, groups=groups)


def _parameters_only(module: nn.Module) -> ModelSummary:
    stored = {
        name: Parameter(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            size_bytes=tensor.numel() * tensor.element_size(),
            read=None if tensor.is_meta else partial(as_array, tensor),
            trained=isinstance(tensor, nn.Parameter),
        )
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    summary = ModelSummary("parameters", parameters=stored)
    note = _NOT_TRACED.format(name=type(module).__name__)
    return replace(summary, notes=(note,))
