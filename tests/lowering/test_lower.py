"""What `lower` returns: callable like the model, exportable, smaller, reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import GateConfig, analyze, gates, insert_gates, lower
from fgcompile.capture import capture
from fgcompile.program import Program
from fgcompile.zoo.closing import close_at_random
from fgcompile.zoo.models import entry

X = torch.linspace(-1, 1, 8).view(2, 4)
MLP_ONLY = GateConfig(kinds=("mlp",))
HEADS = GateConfig(kinds=("head",))


def mlp() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def half_closed() -> Any:
    model = insert_gates(mlp(), (X,), MLP_ONLY)
    gates(model)["mlp"].close([0, 2, 4, 6])
    return model


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_lowering_leaves_the_gated_model_alone() -> None:
    model = half_closed().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lower(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("target", ["fx", "onnx"])
def test_result_is_called_like_the_model(target: Any) -> None:
    model = half_closed()
    lowered = lower(model, target)
    x = torch.randn(7, 4)
    for found in (lowered(x), lowered(input=x)):
        value = found if isinstance(found, torch.Tensor) else next(iter(found.values()))
        torch.testing.assert_close(value, model(x))


def test_parameters_of_the_result_are_the_smaller_ones() -> None:
    model = half_closed()
    lowered = lower(model)
    assert count(lowered.model) == 4 * 4 + 4 + 4 * 2 + 2
    shapes = {n: tuple(p.shape) for n, p in lowered.model.named_parameters()}
    assert shapes == {
        "0.weight": (4, 4),
        "0.bias": (4,),
        "2.weight": (2, 4),
        "2.bias": (2,),
    }
    torch.testing.assert_close(
        lowered.model.get_parameter("0.weight"), model[0].weight[1::2]
    )
    assert all(p.requires_grad for p in lowered.model.parameters())


def test_result_can_be_exported_and_captured_again() -> None:
    model = half_closed()
    lowered = lower(model)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(lowered.model, (X,), dynamic_shapes=({0: batch},))
    x = torch.randn(9, 4)
    torch.testing.assert_close(exported.module()(x), model(x))
    assert lower(lowered.model, example_inputs=(X,)).report.same
    assert capture(lowered.model, (X,))(x).shape == (9, 2)


def test_saved_program_loads_and_runs(tmp_path: Path) -> None:
    model = half_closed()
    file = lower(model).save(tmp_path / "out")
    assert file == tmp_path / "out" / "model.pt2"
    x = torch.randn(9, 4)
    loaded = torch.export.load(file).module()
    torch.testing.assert_close(loaded(input=x), model(x))


def test_report_names_the_group_and_its_units() -> None:
    report = lower(half_closed()).report
    (group,) = report.groups
    assert (group.name, group.before, group.after) == ("mlp", 8, 4)
    assert group.kept == (1, 3, 5, 7)
    assert report.verdict.verified is not None
    assert report.notes == ()


def test_verification_is_left_out_on_request() -> None:
    lowered = lower(half_closed(), verify=False)
    assert lowered.comparison is None
    assert lowered.report.verdict.verified is None


def test_gated_model_runs_once_on_each_input(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    bind = Program.bind

    def watched(program: Program, args: Any, kwargs: Any) -> Any:
        runs.append(program)
        return bind(program, args, kwargs)

    monkeypatch.setattr(Program, "bind", watched)
    lowered = lower(half_closed(), "onnx")
    assert lowered.comparison is not None
    gated = [one for one in runs if one is lowered._before]
    assert len(gated) == lowered.comparison.cases
    assert lowered._before.cache == {}


def test_file_is_read_when_the_model_is_asked_for() -> None:
    lowered = lower(half_closed(), "onnx")
    assert "model" not in vars(lowered)
    weights = {tuple(t.dims) for t in lowered.model.graph.initializer}
    assert {(4, 4), (4, 2)} & weights
    assert lowered.model is lowered.model


def test_graph_with_gate_nodes_is_lowered() -> None:
    graph = capture(mlp(), (X,)).graph_module
    model = insert_gates(graph, (X,), MLP_ONLY).eval()
    gates(model)["mlp"].close([1, 2, 3])
    lowered = lower(model)
    assert count(lowered.model) == 4 * 5 + 5 + 5 * 2 + 2
    torch.testing.assert_close(lowered(X), model(X))


def test_reopened_units_stay() -> None:
    model = half_closed()
    gates(model)["mlp"].reopen()
    assert count(lower(model).model) == count(mlp())


def test_model_without_gates_keeps_its_size() -> None:
    lowered = lower(mlp(), example_inputs=(X,))
    assert count(lowered.model) == count(mlp())
    assert lowered.report.same


def test_fractional_gates_of_training_are_exact() -> None:
    model = insert_gates(mlp(), (X,), MLP_ONLY)
    (gate,) = gates(model).values()
    with torch.no_grad():
        gate.logits.uniform_(-1.2, 0.0)
    lowered = lower(model)
    assert count(lowered.model) == 4 * 8 + 8 + 8 * 2 + 2
    torch.testing.assert_close(lowered(X), model(X))


def test_table_of_all_layers_keeps_what_any_layer_needs() -> None:
    # The first layer's bias table serves every layer, and each lost another head.
    found = entry("t5")
    model = insert_gates(found.build(), found.example_inputs(), HEADS)
    encoder = [g for n, g in gates(model).items() if n.startswith("encoder")]
    assert len(encoder) > 1
    for number, gate in enumerate(encoder):
        gate.close([number % gate.size])
    lowered = lower(model)
    tables = {
        name: p.shape[1]
        for name, p in lowered.model.named_parameters()
        if "relative_attention_bias" in name and name.startswith("encoder")
    }
    assert list(tables.values()) == [encoder[0].size]
    assert lowered.comparison is not None
    assert lowered.comparison.relative < 1e-5


def test_column_of_a_head_that_every_layer_lost_goes() -> None:
    found = entry("t5")
    model = insert_gates(found.build(), found.example_inputs(), HEADS)
    analysis = analyze(found.build(), found.example_inputs())
    closed = {n: [1] for n in gates(model) if n.startswith("encoder")}
    for name, units in closed.items():
        gates(model)[name].close(units)
    lowered = lower(model)
    size = gates(model)[next(iter(closed))].size
    (table,) = (
        p
        for name, p in lowered.model.named_parameters()
        if "relative_attention_bias" in name and name.startswith("encoder")
    )
    assert table.shape[1] == size - 1
    assert count(lowered.model) == analysis.parameters_after(closed)


class OtherNorm(nn.Module):
    """Nearly a LayerNorm: `eps` is outside the root."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5)


class Stream(nn.Module):
    """Two layers write what a norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)
        self.norm, self.head = OtherNorm(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.norm(x + self.second(x)))


def test_a_closed_unit_that_stays_names_what_mixes_others_into_it() -> None:
    model = insert_gates(Stream().eval(), (X,), GateConfig(kinds=("residual",)))
    (gate,) = gates(model).values()
    gate.close([1, 5])
    (note,) = [n for n in lower(model).report.notes if n.subject == gate.name]
    assert note.text.startswith("2 of 2 closed units stay: aten.sub.Tensor in norm (")
    assert note.text.endswith(") mixes other units into them")


def test_units_that_stay_for_the_shapes_sake_blame_no_operator() -> None:
    kinds = ("mlp", "head", "qk", "vo", "residual")
    model = insert_gates(
        entry("bert").build(), config=GateConfig(kinds=kinds, gate="plain")
    )
    close_at_random(model, seed=1)
    notes = [note.text for note in lower(model).report.notes if "stay" in note.text]
    assert notes
    assert all("tensors are rectangular" in text for text in notes)


@pytest.mark.parametrize("kept", [1, 2])
def test_heads_go_whether_one_or_several_key_value_heads_stay(kept: int) -> None:
    model = insert_gates(entry("llama").build(), config=HEADS)
    dense = count(lower(model, verify=False).model)
    first = next(iter(gates(model).values()))
    first.close(range(kept, first.size))
    # 768 parameters for a key-value head and its two queries.
    assert dense - count(lower(model).model) == (first.size - kept) * 768
