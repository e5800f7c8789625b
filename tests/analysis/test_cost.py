"""Costs are exact: recounted on the parameters themselves, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fgcompile.analysis.cost import program_macs
from fgcompile.analysis.coupling import Analysis
from fgcompile.compiler import analyze
from fgcompile.errors import CouplingError
from fgcompile.zoo.models import entry


def analysis_of(name: str) -> Analysis:
    found = entry(name)
    return analyze(found.build(), found.example_inputs())


def recount(analysis: Analysis, closed: dict[str, list[int]]) -> int:
    """Elements of the parameters that lie in no closed row or column."""
    total = 0
    for name in analysis.flow.parameters:
        shape = analysis.flow.values[analysis.flow.parameters[name]].shape
        alive = torch.ones(shape, dtype=torch.bool)
        for group, units in closed.items():
            for member in analysis.by_name[group].members:
                if member.parameter == name:
                    gone = torch.isin(member.index, torch.tensor(units))
                    alive.transpose(0, member.dim)[gone] = False
        total += int(alive.sum())
    return total


@pytest.mark.parametrize(
    "name", ["bert", "llama:tied", "gpt2", "qwen3", "plain-resnet", "plain-mixer"]
)
def test_parameters_after_equals_a_recount(name: str) -> None:
    found = analysis_of(name)
    generator = torch.Generator().manual_seed(0)
    free = [g for g in found.groups if not g.reasons and g.kind != "qk"]
    closed = {
        g.name: torch.randperm(g.size, generator=generator)[: g.size // 3].tolist()
        for g in free
        if g.size > 2
    }
    assert found.parameters_after(closed) == recount(found, closed)
    assert found.parameters_after(closed) < found.parameters


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "qwen3", "plain-resnet"])
def test_unit_cost_is_what_the_model_loses_with_that_unit(name: str) -> None:
    found = analysis_of(name)
    for group in found.groups:
        for unit in (0, group.size - 1):
            closed = {group.name: [unit]}
            lost = found.parameters - found.parameters_after(closed)
            assert group.parameters[unit] == lost
            macs = found.macs - found.macs_after(closed)
            assert math.isclose(float(group.macs[unit]), macs, rel_tol=1e-6, abs_tol=1)


def test_parameter_with_a_unit_in_both_dims_is_counted_once() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.first = nn.Linear(5, 5, bias=False), nn.Linear(3, 5)
            self.last = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.last(x + self.inner(x))

    found = analyze(Square(), (torch.randn(2, 3),))
    group = found.by_name["residual"]
    # inner 5 + 5 - 1, first 3 + 1, last 2
    assert group.parameters.tolist() == [15.0] * 5


def test_closing_every_value_of_a_head_closes_the_head() -> None:
    found = analysis_of("bert")
    head = found.parameters_after({"encoder.layer.0.attention.head": [1]})
    values = found.parameters_after({"encoder.layer.0.attention.vo": range(8, 16)})
    assert values == head


def test_shared_bias_table_loses_a_column_when_every_layer_lost_the_head() -> None:
    found = analysis_of("t5")
    names = [f"encoder.block.{k}.layer.0.SelfAttention.head" for k in (0, 1)]
    one = found.parameters - found.parameters_after({names[0]: [1]})
    both = found.parameters - found.parameters_after({name: [1] for name in names})
    assert both == 2 * one + 32  # buckets of the table


def test_head_costs_what_it_owns() -> None:
    group = analysis_of("bert").by_name["encoder.layer.0.attention.head"]
    rows, columns = 3 * 8 * (32 + 1), 32 * 8
    assert group.parameters.tolist() == [float(rows + columns)] * 4
    # Four projections, scores and averages for 128 tokens.
    macs = 128 * 4 * 8 * 32 + 2 * 128 * 128 * 8
    assert group.macs.tolist() == [float(macs)] * 4


def test_program_macs_follow_batch_and_length() -> None:
    found = analysis_of("bert")
    layer = 4 * 32 * 32 + 2 * 32 * 96
    for batch, length in ((1, 128), (3, 10)):
        expected = batch * (length * 2 * layer + 2 * 2 * length**2 * 32 + 32 * 32)
        assert program_macs(found.program, found.flow, batch, length) == expected
    assert found.macs == program_macs(found.program, found.flow)


def test_convolution_costs_kernel_times_positions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1, stride=2))
    found = analyze(model, (torch.randn(2, 3, 6, 6),))
    assert found.macs == 36 * 8 * 3 * 9 + 9 * 4 * 8
    (group,) = [g for g in found.groups if g.size == 8]
    assert group.macs.tolist() == [float(36 * 3 * 9 + 9 * 4)] * 8


def test_closing_an_unknown_unit_is_an_error() -> None:
    found = analysis_of("bert")
    with pytest.raises(CouplingError, match="has units 0 to 95, got 96 to 96"):
        found.parameters_after({"encoder.layer.0.mlp": [96]})
    with pytest.raises(CouplingError, match="no group 'mlp'"):
        found.parameters_after({"mlp": [0]})
