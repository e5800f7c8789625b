"""Training that did nothing to the gates is an error at lowering, not silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fgcompile import (
    Budget,
    GateConfig,
    gates,
    insert_gates,
    lower,
    penalty,
    remove_gates,
    status,
)
from fgcompile.errors import GateError
from tests.gates.models import mlp

X = torch.randn(4, 8)


def gated(**changes: Any) -> Any:
    return insert_gates(mlp(), (X,), GateConfig(kinds=("mlp",), **changes))


def train(model: Any, parameters: Any, penalised: bool) -> None:
    optimizer = torch.optim.SGD(parameters, 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.train()(X).square().mean()
        (loss + penalty(model) if penalised else loss).backward()
        optimizer.step()


def test_penalty_that_never_ran_is_an_error() -> None:
    model = gated()
    train(model, model.parameters(), penalised=False)
    with pytest.raises(GateError, match="penalty never ran in 3 training forwards"):
        lower(model)


def test_gates_that_no_optimizer_moved_are_an_error() -> None:
    model = gated()
    train(model, [model[0].weight], penalised=True)
    with pytest.raises(GateError, match="no gate moved in 3 training forwards"):
        lower(model)


@pytest.mark.parametrize(
    "changes",
    [{"begin": 3}, {"begin": 1000}, {"budget": Budget(params=0.5, begin=3)}],
    ids=["as the last step ended", "long before", "budget"],
)
def test_training_that_ended_before_the_objective_started_is_an_error(
    changes: dict[str, Any],
) -> None:
    model = gated(**changes)
    train(model, model.parameters(), penalised=True)
    with pytest.raises(GateError, match=r"starts after \d+ optimizer steps.* were 3"):
        lower(model)


def test_an_objective_that_one_step_felt_is_lowered() -> None:
    model = gated(begin=2)
    train(model, model.parameters(), penalised=True)
    lower(model)
    assert status(model)["problems"] == []


def test_error_says_how_to_lower_the_dense_model() -> None:
    model = gated()
    train(model, model.parameters(), penalised=False)
    with pytest.raises(GateError, match=r"Train again; .*remove_gates\(model\)"):
        lower(model)
    lower(remove_gates(model), example_inputs=(X,))


@pytest.mark.parametrize("case", ["trained", "untrained", "closed", "no objective"])
def test_gates_that_did_what_was_asked_are_lowered(case: str) -> None:
    model = gated(**({"objective": "none"} if case == "no objective" else {}))
    if case != "untrained":
        train(model, model.parameters(), penalised=case == "trained")
    if case == "closed":
        gates(model)["mlp"].close([0, 1])
    lower(model)
