"""A limit on latency: what is predicted from a table, and what the budget closes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fgcompile.errors import FormatError, GateError
from fgcompile.gates import (
    Budget,
    LatencyTable,
    attach,
    container_of,
    gates,
    load_gates,
    penalty,
    save_gates,
    saved_config,
    status,
)
from fgcompile.gates.latency import GroupTimes, SharedTime, units_over
from tests.gates.models import quiet, site, spec


def table(**changes: Any) -> LatencyTable:
    """10 s, of which 2 are nobody's: 6 of a, for its first two units 4, and 2 of b."""
    groups = (
        GroupTimes("a", "mlp", (0, 2, 4), (0.0, 4.0, 6.0)),
        GroupTimes("b", "head", (0, 4), (0.0, 2.0)),
    )
    shared = (SharedTime(("a",), 6.0), SharedTime(("b",), 2.0))
    return replace(LatencyTable(10.0, groups, shared), **changes)


def two_groups() -> list[Any]:
    units = torch.arange(4)
    return [spec("a", "mlp", [site("0", units)]), spec("b", "head", [site("1", units)])]


def four() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def trained(budget: Budget, importance: list[list[float]], steps: int = 3) -> Any:
    """A model whose budget ran to its end, with units of this importance."""
    model = attach(four(), two_groups(), quiet(budget=budget))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps + 1):
        for gate, values in zip(container_of(model).each(), importance, strict=True):
            gate.importance.copy_(torch.tensor(values))
        (model(torch.ones(2, 4)).square().mean() + penalty(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def open_units(model: nn.Module) -> dict[str, list[int]]:
    return {
        n: gate.open.nonzero().flatten().tolist() for n, gate in gates(model).items()
    }


RISING = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]


# -- prediction ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "seconds"),
    [
        ({}, 10.0),
        ({"a": 2}, 8.0),
        ({"a": 3}, 9.0),
        ({"a": 1}, 6.0),
        ({"a": 2, "b": 2}, 7.0),
        ({"a": 0, "b": 0}, 2.0),
    ],
)
def test_prediction_takes_off_what_each_group_saves(
    kept: dict[str, int], seconds: float
) -> None:
    assert table().predict(kept) == pytest.approx(seconds)


def test_what_groups_share_shrinks_with_each_of_them() -> None:
    found = table(shared=(SharedTime(("a", "b"), 6.0),))
    # Two thirds of a are left with two units, half of b.
    assert found.predict({"a": 2, "b": 2}) == pytest.approx(4 + 6 * 2 / 3 / 2)


def test_groups_that_were_not_measured_are_refused() -> None:
    with pytest.raises(GateError, match=r"group c was not measured\n.*a, b"):
        table().predict({"c": 1})


def test_table_survives_json() -> None:
    assert LatencyTable.from_json(table().to_json()) == table()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"groups": [{}], "shared": []}'])
def test_damaged_tables_are_told(text: str) -> None:
    with pytest.raises(FormatError, match="table of latencies is damaged"):
        LatencyTable.from_json(text)


# -- budget -------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.95, 0.8, 0.7, 0.55, 0.4, 0.25])
def test_predicted_latency_is_below_the_limit_by_less_than_a_unit(limit: float) -> None:
    budget = Budget(latency=limit, measured=table(), steps=2)
    found = status(trained(budget, RISING))
    assert found["goal"] == {"latency": limit}
    assert found["met"]
    assert limit - 0.2 < found["cost"]["latency"] <= limit + 1e-6


def test_latency_in_status_is_that_of_the_table() -> None:
    model = trained(Budget(latency=0.6, measured=table(), steps=2), RISING)
    kept = {name: len(units) for name, units in open_units(model).items()}
    want = table().predict(kept) / 10.0
    assert status(model)["cost"]["latency"] == pytest.approx(want)


def test_units_that_save_nothing_stay() -> None:
    cheap = table(shared=(SharedTime(("a",), 8.0), SharedTime(("b",), 1e-6)))
    budget = Budget(latency=0.8, measured=cheap, steps=2, evenness=0.0)
    assert open_units(trained(budget, RISING))["b"] == [0, 1, 2, 3]


def test_most_important_units_stay() -> None:
    model = trained(Budget(latency=0.6, measured=table(), steps=2), RISING)
    for units in open_units(model).values():
        assert units == list(range(4 - len(units), 4))


def test_limits_on_latency_and_parameters_hold_together() -> None:
    budget = Budget(latency=0.9, params=0.25, measured=table(), steps=2)
    strict = status(trained(budget, RISING))
    assert strict["cost"]["params"] <= 0.25
    budget = Budget(latency=0.4, params=0.9, measured=table(), steps=2)
    fast = status(trained(budget, RISING))
    assert fast["cost"]["latency"] <= 0.4 + 1e-6
    assert (strict["met"], fast["met"]) == (True, True)


def test_units_closed_by_hand_count_as_closed() -> None:
    model = attach(
        four(), two_groups(), quiet(budget=Budget(latency=0.8, measured=table()))
    )
    gates(model)["a"].close([0, 1])
    assert status(model)["cost"]["latency"] == pytest.approx(0.8)
    container_of(model).updates.fill_(100)
    container_of(model).settle()
    assert open_units(model) == {"a": [2, 3], "b": [0, 1, 2, 3]}


def test_penalty_presses_on_units_by_what_they_save() -> None:
    budget = Budget(latency=0.5, measured=table(), steps=1, ascent=1.0)
    model = attach(four(), two_groups(), quiet(budget=budget))
    objective: Any = container_of(model).objective
    objective.l1.fill_(1.0)
    penalty(model).backward()
    a, b = (gate.logits.grad for gate in container_of(model).each())
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a, 3 * b)  # 6 s for four units, against 2 s


def test_a_limit_below_what_no_gate_saves_is_refused() -> None:
    budget = Budget(latency=0.15, measured=table())
    with pytest.raises(GateError, match=r"cannot be met: 20.0% of the dense model's"):
        attach(four(), two_groups(), quiet(budget=budget))


def test_gates_by_themselves_need_a_table() -> None:
    with pytest.raises(GateError, match="needs times, which gates do not measure"):
        attach(four(), two_groups(), quiet(budget=Budget(latency=0.5)))


@pytest.mark.parametrize(
    ("specs", "text"),
    [
        (two_groups()[::-1], "group 0 is a with 4 units, in the model it is b with 4"),
        (two_groups()[:1], "they are of 2 groups, the model has 1"),
    ],
)
def test_a_table_of_other_groups_is_refused(specs: list[Any], text: str) -> None:
    budget = Budget(latency=0.5, measured=table())
    with pytest.raises(GateError, match=text):
        attach(four(), specs, quiet(budget=budget))


def test_a_missed_limit_is_said_in_words_of_latency() -> None:
    budget = Budget(latency=0.5, measured=table(), steps=10)
    (problem,) = status(trained(budget, RISING, steps=1))["problems"]
    assert "of the dense latency are predicted, the limit is 50.0%" in problem


# -- storage ------------------------------------------------------------------------


def test_saved_gates_bring_their_table_to_a_machine_with_another(
    tmp_path: Path,
) -> None:
    budget = Budget(latency=0.6, measured=table(), steps=2)
    save_gates(trained(budget, RISING), tmp_path)
    slow = table(shared=(SharedTime(("a",), 7.0), SharedTime(("b",), 2.0)))
    other = replace(budget, measured=slow)
    model = attach(four(), two_groups(), quiet(budget=other)).eval()
    load_gates(model, tmp_path)
    kept = {name: len(units) for name, units in open_units(model).items()}
    assert status(model)["cost"]["latency"] == pytest.approx(table().predict(kept) / 10)


def test_saved_config_holds_the_table_so_that_nothing_is_measured(
    tmp_path: Path,
) -> None:
    config = quiet(budget=Budget(latency=0.6, measured=table(), batch=2, steps=2))
    save_gates(attach(four(), two_groups(), config), tmp_path)
    assert saved_config(tmp_path) == config


# -- selection ----------------------------------------------------------------------


@given(
    st.permutations(range(7)),
    st.lists(st.booleans(), min_size=7, max_size=7),
    st.integers(0, 7),
)
def test_fewest_of_the_first_units_go(
    order: list[int], gone: list[bool], enough: int
) -> None:
    def meets(closed: Tensor) -> Tensor:
        return closed.sum() >= enough

    found = units_over(torch.tensor(order), torch.tensor(gone), meets)
    want = list(gone)
    for unit in order:
        if sum(want) >= enough:
            break
        want[unit] = True
    assert found.tolist() == want
