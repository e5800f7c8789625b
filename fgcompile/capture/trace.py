"""nn.Module -> Program, by torch.export.

The graph stays at the training level: `linear`, `scaled_dot_product_attention` and
`layer_norm` are whole, so one rule describes each. Weights are shared with the model
and never read: a model on the meta device is captured as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fgcompile.capture.binding import bind_inputs
from fgcompile.capture.complex_numbers import in_real_numbers
from fgcompile.capture.composites import take_apart
from fgcompile.capture.evaluation import evaluate, refuse_state, remove_unread_updates
from fgcompile.capture.export import export
from fgcompile.capture.functional import functionalize
from fgcompile.capture.inputs import OPTIONAL
from fgcompile.capture.names import output_names
from fgcompile.capture.simplify import simplify
from fgcompile.capture.state import silence
from fgcompile.capture.subgraphs import inline_subgraphs
from fgcompile.capture.tidy import (
    is_guard,
    remove_assertions,
    remove_copies,
    remove_identities,
    settle_sizes,
)
from fgcompile.capture.tied import merge_tied_tensors
from fgcompile.errors import CaptureError
from fgcompile.program import Program

_TRANSFORMS = "torch._functorch.predispatch"


def capture(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | dict[str, Any] | None = None,
    *,
    fixed: bool = False,
) -> Program:
    """The model's eval-mode forward pass as a flat graph of ATen ops.

    Batch and sequence sizes are symbols wherever the model allows it. Training flags
    and configurations are as before afterwards.

    Args:
        model: Any module, or a GraphModule whose nodes are ATen ops already.
        example_inputs: Positional or keyword inputs of `forward`. transformers models
            need none.
        fixed: Whether all sizes stay those of the example inputs.

    Raises:
        CaptureError: If `model` is not a module, its inputs are missing or do not fit,
            or its control flow depends on tensor values.
    """
    check_is_module(model)
    if is_aten_graph(model):
        inputs = _graph_inputs(model, example_inputs)
        wrapped = _wrap_graph(model, inputs)
        if wrapped is not None:
            return wrapped
        example_inputs = inputs
    inputs = bind_inputs(model, example_inputs)
    exported, inputs = export(model, inputs, fixed)
    graph_module = _graph_module(exported)
    complete, written = False, set[str]()
    if not _has_transforms(graph_module):
        complete, written = _flatten(graph_module)
    if not complete:
        # Writes through views are beyond a local rewrite: torch's functionalization.
        graph_module = _graph_module(exported, functional=True)
        _, written = _flatten(graph_module)
    return _finish(graph_module, inputs, model, written)


def check_is_module(model: object) -> None:
    """Raises CaptureError if `model` is nothing that can be captured."""
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"cannot capture an object of type {type(model).__name__}\n"
            "  Pass a torch.nn.Module or a torch.fx.GraphModule."
        )


def _has_transforms(graph_module: GraphModule) -> bool:
    """Whether it enters and leaves `torch.vmap` and the like, by calls with effects."""
    return any(
        getattr(node.target, "__module__", None) == _TRANSFORMS
        for node in graph_module.graph.nodes
        if node.op == "call_function"
    )


def _graph_module(exported: ExportedProgram, functional: bool = False) -> GraphModule:
    with silence():
        if functional:
            exported = exported.run_decompositions({})
        graph_module = exported.module(check_guards=False)
    assert isinstance(graph_module, GraphModule)
    return graph_module


def is_aten_graph(model: nn.Module) -> bool:
    """Whether `model` is a GraphModule of ATen or custom ops with known values."""
    if not isinstance(model, GraphModule):
        return False
    calls = [node for node in model.graph.nodes if node.op.startswith("call_")]
    return bool(calls) and all(
        is_guard(model, node) or (node.op == "call_function" and "val" in node.meta)
        for node in calls
    )


def _wrap_graph(model: Any, inputs: dict[str, Any]) -> Program | None:
    """The graph itself as a program, or None if its in-place ops need a new trace."""
    copy = Program(model, inputs).copy()
    evaluate(copy.graph_module)
    complete, written = _flatten(copy.graph_module)
    return _finish(copy.graph_module, inputs, model, written) if complete else None


def _graph_inputs(model: Any, example_inputs: Any) -> dict[str, Any]:
    if example_inputs is not None:
        return bind_inputs(model, example_inputs)
    return {
        str(node.target): _example(node.meta["val"])
        for node in model.graph.nodes
        if node.op == "placeholder"
    }


def _example(value: Any) -> Any:
    """A tensor like the traced one, at the sizes it was traced with."""
    if not isinstance(value, torch.Tensor):
        return value
    sizes = [size if isinstance(size, int) else size.node.hint for size in value.shape]
    if value.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(sizes, generator=generator)
        return values.to(value.device, value.dtype)
    return torch.ones(sizes, dtype=value.dtype, device=value.device)


def _flatten(graph_module: GraphModule) -> tuple[bool, set[str]]:
    """One flat graph of what is computed.

    Returns:
        Whether no in-place op is left in it, and the names of buffers that it wrote.
    """
    graph_module._forward_pre_hooks.clear()
    remove_assertions(graph_module)
    inline_subgraphs(graph_module)
    remove_identities(graph_module)
    written = remove_unread_updates(graph_module)
    return functionalize(graph_module), written


def _finish(
    graph_module: GraphModule, inputs: dict[str, Any], model: Any, written: set[str]
) -> Program:
    remove_copies(graph_module)
    settle_sizes(graph_module)
    in_real_numbers(graph_module)
    simplify(graph_module)
    if take_apart(graph_module):
        simplify(graph_module)
    aliases = merge_tied_tensors(graph_module, model)
    graph_module.graph.eliminate_dead_code()
    refuse_state(graph_module, written)
    graph_module.recompile()
    names = _output_names(graph_module)
    optional = tuple(name for name in OPTIONAL if name in inputs)
    return Program(graph_module, inputs, model, aliases, names, optional=optional)


def _output_names(graph_module: GraphModule) -> list[str]:
    info = getattr(graph_module.graph._codegen, "pytree_info", None)
    spec = None if info is None else info.out_spec
    if spec is None:
        spec = pytree.tree_structure(graph_module.graph.output_node().args[0])
    return output_names(spec)
