"""Which node is which: names and positions never matter, structure does."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from fgcompile.report import diff
from fgcompile.report.load import summarize
from fgcompile.report.matching import match_nodes
from fgcompile.report.ports import canonical_order
from tests.report.models import Encoder, scrambled


@pytest.mark.parametrize("provenance", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_renamed_and_reordered_graph_is_no_change(provenance, seed):
    model = Encoder(provenance=provenance).build()
    assert diff(model, scrambled(model, seed)).same


def test_provenance_on_one_side_only_is_no_change():
    assert diff(Encoder().build(), scrambled(Encoder(provenance=False).build())).same


@pytest.mark.parametrize("provenance", [True, False])
def test_inserted_nodes_misalign_nothing(provenance):
    before = Encoder(layers=6, provenance=provenance).build()
    after = Encoder(layers=6, provenance=provenance, insert_after_gelu=[1, 4]).build()
    report = diff(scrambled(before, 1), scrambled(after, 2))
    assert [(c.action, c.op) for c in report.nodes] == [("added", "Clip")] * 2
    assert not report.groups
    assert not report.parameters


def test_an_inserted_node_is_placed_by_its_neighbours():
    before, after = Encoder().build(), Encoder(insert_after_gelu=[1]).build()
    for node in after.graph.node:
        if node.op_type == "Clip":
            del node.metadata_props[:]
    (change,) = diff(before, after).nodes
    assert change.module == "encoder.layer.1.act"


@pytest.mark.parametrize("provenance", [True, False])
def test_removed_nodes_are_found_in_the_other_direction(provenance):
    before = Encoder(provenance=provenance, insert_after_gelu=[0, 2]).build()
    after = Encoder(provenance=provenance).build()
    report = diff(before, scrambled(after))
    assert [(c.action, c.op) for c in report.nodes] == [("removed", "Clip")] * 2


@pytest.mark.parametrize("provenance", [True, False])
def test_a_changed_constant_is_a_changed_node(provenance):
    before = Encoder(provenance=provenance).build()
    after = Encoder(provenance=provenance, scale=0.25).build()
    report = diff(before, scrambled(after))
    assert {(c.action, c.op) for c in report.nodes} == {("changed", "Mul")}
    assert len(report.nodes) == 3
    (change,) = report.nodes[0].changes
    assert (change.before, change.after) == ("0.5", "0.25")


def test_a_removed_layer_leaves_the_other_layers_matched():
    before, after = Encoder(layers=4).build(), Encoder(layers=3).build()
    report = diff(before, after)
    assert {change.action for change in report.nodes} == {"removed"}
    assert {change.module.split(".")[2] for change in report.nodes} == {"3"}


def test_other_values_are_reported_without_a_structural_change():
    before, after = Encoder().build(), Encoder().build()
    tensor = next(t for t in after.graph.initializer if t.name.endswith("1.up.bias"))
    tensor.raw_data = b"\x00" * len(tensor.raw_data)
    report = diff(before, after)
    assert not report.nodes
    assert [(c.name, c.values_changed) for c in report.parameters] == [
        ("encoder.layer.1.up.bias", True)
    ]
    assert not report.same


def test_swapped_operands_matter_only_where_order_does():
    def model(op: str, names: list[str]) -> onnx.ModelProto:
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2])
            for name in ("a", "b", "c")
        ]
        nodes = [
            helper.make_node("Sin", ["a"], ["x"]),
            helper.make_node("Cos", ["b"], ["y"]),
            helper.make_node(op, names, ["c"]),
        ]
        graph = helper.make_graph(nodes, "g", ports[:2], ports[2:])
        return helper.make_model(graph)

    assert diff(model("Add", ["x", "y"]), model("Add", ["y", "x"])).same
    report = diff(model("Sub", ["x", "y"]), model("Sub", ["y", "x"]))
    assert [change.op for change in report.nodes] == ["Sub"]


def test_provenance_tells_equal_branches_apart():
    def model(names: str) -> onnx.ModelProto:
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
            for name in ("x", "y")
        ]
        nodes = []
        for name in names:
            node = helper.make_node("Sin", ["x"], [f"{name}_out"])
            entry = node.metadata_props.add()
            entry.key = "pkg.torch.onnx.name_scopes"
            entry.value = str(["", name, "sin"])
            nodes.append(node)
        total = helper.make_node("Sum", [f"{name}_out" for name in names], ["y"])
        graph = helper.make_graph([*nodes, total], "g", ports[:1], ports[1:])
        return helper.make_model(graph)

    report = diff(model("abc"), model("ac"))
    assert [(c.action, c.module) for c in report.nodes if c.op == "Sin"] == [
        ("removed", "b")
    ]


def test_canonical_order_ignores_the_order_of_a_file():
    model = Encoder().build()
    orders = []
    for variant in (model, scrambled(model, 3)):
        summary = summarize(variant)
        orders.append([summary.nodes[i].op for i in canonical_order(summary)])
    assert orders[0] == orders[1]


def test_every_node_is_matched_at_most_once():
    old = summarize(Encoder(layers=5, provenance=False).build())
    new = summarize(Encoder(layers=3, provenance=False, insert_after_gelu=[1]).build())
    matching = match_nodes(old, new)
    assert len(set(matching.after_of.values())) == len(matching.after_of)
    assert {b: a for a, b in matching.before_of.items()} == matching.after_of
    assert all(old.nodes[i].op == new.nodes[j].op for i, j in matching.after_of.items())
