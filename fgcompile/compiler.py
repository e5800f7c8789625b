"""The public verbs: analyze, insert_gates, measure_latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeGuard, TypeVar

from torch import nn
from torch.fx import GraphModule, Node

from fgcompile.analysis.coupling import Analysis, find_groups
from fgcompile.capture import capture
from fgcompile.capture.state import one_at_a_time
from fgcompile.capture.trace import check_is_module, is_aten_graph
from fgcompile.errors import GateError
from fgcompile.gates.attach import (
    attach,
    container_of,
    find_container,
    make_container,
)
from fgcompile.gates.config import GateConfig
from fgcompile.gates.hooks import hidden_updates
from fgcompile.gates.independent import specs_for
from fgcompile.gates.latency import LatencyTable
from fgcompile.gates.spec import GateSpec
from fgcompile.passes.insert_gates import insert_gate_nodes
from fgcompile.program import Program
from fgcompile.targets.latency.bar import progress_bar
from fgcompile.targets.latency.measure import Setting, measure

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Inputs = tuple[Any, ...] | dict[str, Any]


@one_at_a_time
def analyze(
    model: nn.Module | Program, example_inputs: Inputs | None = None
) -> Analysis:
    """The coupled groups of a model: what may shrink, with what, and what it is worth.

    Weights are not read: a model on the meta device can be analysed. Gates are no part
    of what is analysed, nor are updates of S2FT in a module: a model has the same
    groups with and without them.

    Args:
        model: Any module, an FX GraphModule, or a program that was captured before.
        example_inputs: Positional or keyword inputs of `forward`. transformers models
            need none.

    Raises:
        CaptureError: If the model cannot be captured.
    """
    if isinstance(model, Program):
        return find_groups(_without_gates(model))
    check_is_module(model)
    container = find_container(model)
    if container is not None:
        # Tracing leaves buffers as they are, so that nothing may be due in them.
        container.settle()
    with hidden_updates(model):
        program = capture(model, example_inputs)
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
        ExportError: If latency is limited and cannot be measured.
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
    config = config or GateConfig()
    macs = float(analysis.macs)
    specs = _specs(analysis, config, model)
    config = _measured(analysis, config, specs)
    if _is_graph(model):
        container = make_container(model, specs, config, model_macs=macs)
        insert_gate_nodes(model, specs, container)
    else:
        attach(model, specs, config, model_macs=macs)
    # lower() captures with the same inputs, unless it is given others.
    vars(container_of(model))["example_inputs"] = example_inputs
    return model


def measure_latency(
    model: nn.Module,
    example_inputs: Inputs | None = None,
    kinds: Sequence[str] | None = None,
    *,
    batch: int = 1,
    length: int = 128,
    threads: int = 1,
    fresh: bool = False,
) -> LatencyTable:
    """What `model` and its units take in ONNX Runtime on this machine.

    `insert_gates` does this by itself where `Budget(latency=...)` asks for it. By
    itself it serves to look at, and to measure on the machine that will serve the
    model: `Budget(latency=0.6, measured=table)` then trains on another. Measured once,
    times are read from the cache folder (`~/.cache/fgcompile`).

    Args:
        model: Any module; it is not changed.
        example_inputs: As for `insert_gates`.
        kinds: Kinds of group that will be gated; None as for `insert_gates`.
        batch: Rows.
        length: Tokens in a row; not read for models without a dynamic length.
        threads: Threads of the runtime.
        fresh: Measure again, whatever is in the cache.

    Raises:
        CaptureError: If the model cannot be captured.
        GateError: If there is nothing of these kinds to gate.
        ExportError: If the extra `onnx` is not installed, or a part of the model
            cannot be exported.
        FormatError: If the model does not run at that size.
    """
    analysis = analyze(model, example_inputs)
    config = GateConfig(kinds=None if kinds is None else tuple(kinds))
    names = [spec.name for spec in _specs(analysis, config, model)]
    with progress_bar() as progress:
        setting = Setting(batch, length, threads)
        return measure(analysis, names, setting, fresh=fresh, progress=progress)


def _measured(
    analysis: Analysis, config: GateConfig, specs: Sequence[GateSpec]
) -> GateConfig:
    """`config` with measured latencies, if it limits them and has none."""
    budget = config.budget
    if budget is None or budget.latency is None or budget.measured is not None:
        return config
    setting = Setting(budget.batch, budget.length, budget.threads)
    with progress_bar() as progress:
        names = [spec.name for spec in specs]
        table = measure(analysis, names, setting, progress=progress)
    return replace(config, budget=replace(budget, measured=table))


def _specs(analysis: Analysis, config: GateConfig, model: nn.Module) -> list[GateSpec]:
    return specs_for(analysis, config, None if _is_graph(model) else model)


def _is_graph(model: nn.Module) -> TypeGuard[GraphModule]:
    return isinstance(model, GraphModule) and is_aten_graph(model)


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
