"""Facts are found once, and again as soon as the program is another one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fgcompile.analysis.facts import zero_slices
from fgcompile.analysis.known import known_facts
from fgcompile.capture import capture
from fgcompile.passes.pipeline import eliminate
from fgcompile.passes.weights import replace_tensor
from fgcompile.program import Program


@pytest.fixture
def program() -> Program:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    return capture(model, (torch.randn(2, 4),))


def weight(program: Program) -> torch.fx.Node:
    nodes = program.graph.find_nodes(op="get_attr")
    return next(n for n in nodes if program.parameter(n).shape == (6, 4))


def zero_rows(program: Program) -> list[int]:
    flow, constants = known_facts(program)
    index = flow.parameters[str(weight(program).target)]
    return np.flatnonzero(constants.planes[index][0] == 0).tolist()


def test_facts_are_found_once(program: Program) -> None:
    assert known_facts(program)[1] is known_facts(program)[1]


def test_weight_changed_in_place_is_seen(program: Program) -> None:
    assert zero_rows(program) == []
    with torch.no_grad():
        program.parameter(weight(program))[2] = 0
    assert zero_rows(program) == [2]


def test_replaced_weight_is_seen(program: Program) -> None:
    assert zero_rows(program) == []
    changed = program.parameter(weight(program)).detach().clone()
    changed[[1, 4]] = 0
    replace_tensor(program, weight(program), nn.Parameter(changed))
    assert zero_rows(program) == [1, 4]


def test_rewritten_graph_is_seen(program: Program) -> None:
    before = known_facts(program)
    relu = next(n for n in program.graph.nodes if "relu" in n.name)
    relu.target = torch.ops.aten.sigmoid.default
    assert known_facts(program)[0] is not before[0]


def test_copies_and_results_remember_nothing(program: Program) -> None:
    known_facts(program)
    assert program.copy().cache == {}
    assert eliminate(program).cache == {}


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("late", [False, True])
def test_zero_slices_are_those_without_any_value(dim: int, late: bool) -> None:
    tensor = torch.zeros(12, 13, 14)
    if late:
        tensor[-1, -1, -1] = 1
    tensor.select(dim, 3).fill_(2)
    expected = [bool((one == 0).all()) for one in tensor.unbind(dim)]
    assert zero_slices(tensor, dim).tolist() == expected


def test_scan_reads_little_of_a_dense_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    compare: Any = Tensor.__eq__

    def watched(one: Tensor, other: object) -> Any:
        read.append(one.numel())
        return compare(one, other)

    monkeypatch.setattr(Tensor, "__eq__", watched)
    assert not zero_slices(torch.ones(200, 300), 1).any()
    assert sum(read) < 200 * 300 / 10
