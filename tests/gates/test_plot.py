"""The plot of a training shows what its history says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fgcompile import plot_gates
from fgcompile.errors import GateError
from fgcompile.gates import attach, gate_numbers
from tests.gates.models import budgeted, mlp, mlp_specs

pytest.importorskip("matplotlib")


def test_history_of_a_plain_loop_is_drawn(tmp_path: Path) -> None:
    model = attach(mlp(), mlp_specs(), budgeted(0.5, steps=4))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    history = []
    for _ in range(6):
        loss = model.train()(torch.randn(4, 8)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({"loss": loss.item()} | gate_numbers(model))
    figure = plot_gates(history, tmp_path / "gates.svg")
    assert (tmp_path / "gates.svg").read_text().count("<svg") == 1
    fractions, losses = figure.axes
    lines = {line.get_label(): line for line in fractions.lines}
    assert list(lines["open units"].get_xdata()) == [1, 2, 3, 4, 5, 6]
    kept = [entry["gates/params"] for entry in history]
    assert list(lines["parameters in open units"].get_ydata()) == kept
    assert kept[0] > kept[-1]
    assert list(losses.lines[0].get_ydata()) == [entry["loss"] for entry in history]


def test_entries_of_a_trainer_may_lack_numbers() -> None:
    history = [
        {"step": 5, "loss": 2.0, "gates/open": 1.0},
        {"step": 5, "eval_loss": 1.5},
        {"step": 10, "loss": 1.0, "gates/open": 0.5},
    ]
    fractions, losses = plot_gates(history).axes
    assert list(fractions.lines[0].get_xdata()) == [5, 10]
    assert list(losses.lines[0].get_ydata()) == [2.0, 1.0]


def test_history_without_gates_is_refused() -> None:
    with pytest.raises(GateError, match="none of 1 entries has numbers of gates"):
        plot_gates([{"loss": 1.0, "step": 1}])
