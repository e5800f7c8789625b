"""The public verbs: analyze, insert_gates."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn
from torch.fx import GraphModule, Node

from fgcompile.analysis.coupling import Analysis, find_groups
from fgcompile.capture import capture
from fgcompile.capture.state import one_at_a_time
from fgcompile.capture.trace import is_aten_graph
from fgcompile.errors import GateError
from fgcompile.gates.attach import (
    attach,
    container_of,
    find_container,
    make_container,
)
from fgcompile.gates.config import GateConfig
from fgcompile.gates.independent import specs_for
from fgcompile.passes.insert_gates import insert_gate_nodes
from fgcompile.program import Program

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Inputs = tuple[Any, ...] | dict[str, Any]


@one_at_a_time
def analyze(
    model: nn.Module | Program, example_inputs: Inputs | None = None
) -> Analysis:
    """The coupled groups of a model: what may shrink, with what, and what it is worth.

    Weights are not read: a model on the meta device can be analysed. Gates are no part
    of what is analysed: a model has the same groups with and without them.

    Args:
        model: Any module, an FX GraphModule, or a program that was captured before.
        example_inputs: Positional or keyword inputs of `forward`. transformers models
            need none.

    Raises:
        CaptureError: If the model cannot be captured.
    """
    program = model if isinstance(model, Program) else capture(model, example_inputs)
    return find_groups(_without_gates(program))


@one_at_a_time
def insert_gates(
    model: ModuleT,
    example_inputs: Inputs | None = None,
    config: GateConfig | None = None,
) -> ModuleT:
    """Puts a gate on every coupled group of the requested kinds, in place.

    Args:
        model: Any module: its class and forward signature stay. In a GraphModule of
            ATen operators every gate becomes a node.
        example_inputs: Positional or keyword inputs of `forward`. transformers models
            need none.
        config: Which groups, and how their gates are trained. By default, the hidden
            channels and the heads are gated, as far as the model has them; the
            channels of convolutions in a model that has neither.

    Returns:
        The same object.

    Raises:
        GateError: If `model` is not a module, has gates already, or a requested kind
            has no group that can be gated. The model is unchanged then.
        CaptureError: If the model cannot be captured.
    """
    if not isinstance(model, nn.Module):
        raise GateError(
            f"cannot gate an object of type {type(model).__name__}\n"
            "  Pass a torch.nn.Module or a torch.fx.GraphModule."
        )
    if find_container(model) is not None:
        raise GateError(
            f"{type(model).__name__} has gates already\n"
            "  Use fgcompile.gates(model), or take them off with remove_gates(model)."
        )
    analysis = analyze(model, example_inputs)
    config = config or GateConfig(kinds=_default_kinds(analysis))
    macs = float(analysis.macs)
    if isinstance(model, GraphModule) and is_aten_graph(model):
        specs = specs_for(analysis, config)
        container = make_container(model, specs, config, model_macs=macs)
        insert_gate_nodes(model, specs, container)
    else:
        specs = specs_for(analysis, config, model)
        attach(model, specs, config, model_macs=macs)
    # lower() captures with the same inputs, unless it is given others.
    vars(container_of(model))["example_inputs"] = example_inputs
    return model


def _without_gates(program: Program) -> Program:
    """`program` itself, or a copy that lacks its gates."""
    if not any(map(_is_gate, program.graph.nodes)):
        return program
    copy = program.copy()
    for node in filter(_is_gate, copy.graph.nodes):
        node.replace_all_uses_with(node.args[0])
    copy.graph.eliminate_dead_code()
    copy.graph_module.recompile()
    return copy


def _is_gate(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name == "fgcompile::gate"


def _default_kinds(analysis: Analysis) -> tuple[str, ...]:
    """The default kinds that the model has.

    All of them if an operator is unknown: a kind that is missing is then an error.
    """
    kinds = GateConfig().kinds
    reasons = [reason for group in analysis.pinned for reason in group.reasons]
    present = {group.kind for group in analysis.groups}
    found = tuple(kind for kind in kinds if kind in present)
    if any(reason.remedy for reason in reasons):
        return kinds
    if not found and "conv" in present:
        return ("conv",)
    return found or kinds
