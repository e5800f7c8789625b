"""Gates as nodes of an FX graph."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from fgcompile.errors import GateError
from fgcompile.gates import (
    Budget,
    GateConfig,
    GateSpec,
    container_of,
    gate_parameters,
    gates,
    make_container,
    penalty,
    remove_gates,
    status,
)
from fgcompile.passes.insert_gates import insert_gate_nodes
from tests.gates.models import mlp, quiet, site, spec

INDEX = torch.tensor([0, 0, 1, 1] * 4)


def graph_of(model: nn.Module) -> GraphModule:
    program = torch.export.export(
        model, (torch.randn(2, 8),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    return program.module(check_guards=False)


def at(node: str, index: Tensor = INDEX, **changes: Any) -> GateSpec:
    return spec(
        "g", "mlp", [dataclasses.replace(site("", index, **changes), node=node)]
    )


def gated(
    given: GateSpec, config: GateConfig | None = None, model: nn.Module | None = None
) -> GraphModule:
    graph = graph_of(model or mlp())
    container = make_container(graph, [given], config or quiet())
    return insert_gate_nodes(graph, [given], container)


def targets(graph: GraphModule) -> list[str]:
    return [str(n.target) for n in graph.graph.nodes if n.op.startswith("call")]


def test_gate_and_its_expansion_are_nodes() -> None:
    assert targets(gated(at("linear_1"))) == [
        "fgcompile_gates.gates.g",
        "aten.linear.default",
        "aten.relu.default",
        "aten.index_select.default",
        "fgcompile.gate.default",
        "aten.linear.default",
    ]


def test_identity_needs_no_expansion() -> None:
    found = targets(gated(at("relu", torch.arange(16), where="output")))
    assert "aten.index_select.default" not in found


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        ("linear_1", {}),
        ("relu", {"where": "output"}),
        ("linear", {"where": "output"}),
        ("_2_weight", {"where": "parameter", "dim": 1}),
    ],
)
def test_closed_unit_is_gone_wherever_the_gate_acts(node: str, changes: Any) -> None:
    model, x = mlp(), torch.randn(5, 8)
    graph = gated(at(node, **changes), model=model)
    assert torch.allclose(graph(x), model(x), atol=1e-6)
    gates(graph)["g"].close([1])
    with torch.no_grad():
        model[2].weight[:, INDEX == 1] = 0
    assert torch.allclose(graph(x), model(x), atol=1e-6)


def test_index_without_unit_keeps_factor_one() -> None:
    index = torch.where(INDEX == 0, 0, -1)
    model, x = mlp(), torch.randn(5, 8)
    graph = gated(at("linear_1", index), model=model)
    gates(graph)["g"].close([0])
    with torch.no_grad():
        model[2].weight[:, index == 0] = 0
    assert torch.allclose(graph(x), model(x), atol=1e-6)


def test_item_of_several_results_is_gated() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Any:
            first, second = x.chunk(2, -1)
            return first, second

    graph = graph_of(Halves())
    name = next(n.name for n in graph.graph.nodes if "chunk" in str(n.target))
    given = at(name, torch.arange(4), where="output", name="1")
    insert_gate_nodes(graph, [given], make_container(graph, [given], quiet()))
    gates(graph)["g"].close([0])
    first, second = graph(torch.ones(2, 8))
    assert (first.tolist(), second.tolist()) == ([[1] * 4] * 2, [[0, 1, 1, 1]] * 2)


def test_gates_are_parameters_of_the_graph_and_learn() -> None:
    config = GateConfig(budget=Budget(params=0.5, steps=10))
    graph = gated(at("linear_1", torch.arange(16)), config)
    (logits,) = gate_parameters(graph)
    assert any(p is logits for p in graph.parameters())
    optimizer = torch.optim.AdamW(graph.parameters(), 2e-5)
    for _ in range(20):
        optimizer.zero_grad()
        (graph(torch.randn(4, 8)).pow(2).mean() + penalty(graph)).backward()
        optimizer.step()
    found = status(graph)
    assert (found["met"], found["open"]) == (True, {"mlp": 0.5})


def test_copied_graph_has_gates_of_its_own() -> None:
    # A GraphModule loses its hooks when it is copied; gates renew theirs.
    graph = symbolic_trace(mlp())
    given = at("_2")
    insert_gate_nodes(graph, [given], make_container(graph, [given], quiet()))
    twin = copy.deepcopy(copy.deepcopy(graph))
    x = torch.randn(2, 8)
    gates(twin)["g"].close([0, 1])
    assert not torch.equal(twin(x), graph(x))
    assert int(container_of(twin).forwards) == 1
    assert int(container_of(graph).forwards) == 1


def test_gated_graph_can_be_exported_again() -> None:
    graph = gated(at("linear_1"))
    container_of(graph).eval()
    gates(graph)["g"].close([0])
    x = torch.randn(3, 8)
    program = torch.export.export(graph, (x,))
    names = [str(n.target) for n in program.graph.nodes]
    assert names.count("fgcompile.gate.default") == 1
    assert torch.allclose(program.module()(x), graph(x), atol=1e-6)


def test_exported_graph_can_switch_modes_for_its_gates() -> None:
    # Without gates, torch.export refuses train() and eval().
    graph = gated(at("linear_1"), GateConfig(noise=0.3))
    x = torch.randn(3, 8)
    assert not torch.equal(graph.train()(x), graph(x))
    assert torch.equal(graph.eval()(x), graph(x))


def test_removed_gates_leave_the_graph_as_it_was() -> None:
    graph = graph_of(mlp())
    before, state = graph.code, list(graph.state_dict())
    index = torch.where(INDEX == 0, 0, -1)
    sites = [site("", index), site("", INDEX, where="output")]
    named = [
        dataclasses.replace(s, node=node)
        for s, node in zip(sites, ("linear_1", "linear"), strict=True)
    ]
    given = spec("g", "mlp", named)
    insert_gate_nodes(graph, [given], make_container(graph, [given]))
    with pytest.raises(GateError, match="nodes of a GraphModule"):
        remove_gates(graph, fold=True)
    remove_gates(graph)
    assert graph.code == before
    assert list(graph.state_dict()) == state
    assert graph._deepcopy_hooks == []


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (at("nowhere"), "the graph has no node 'nowhere'"),
        (at("linear_1", name="9"), "has no argument '9' that is a value"),
        (at("linear_1", name="scale"), "has no argument 'scale' that is a value"),
    ],
)
def test_sites_that_do_not_exist_are_refused(given: GateSpec, text: str) -> None:
    graph = graph_of(mlp())
    before = str(graph.graph)
    with pytest.raises(GateError, match=text):
        insert_gate_nodes(graph, [given], make_container(graph, [given]))
    assert str(graph.graph) == before
