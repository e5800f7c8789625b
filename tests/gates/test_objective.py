"""The sparsity terms: values, gradients, the controller and what it counts."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import lower
from fgcompile.errors import GateError
from fgcompile.gates import (
    Budget,
    GateConfig,
    attach,
    container_of,
    gate_parameters,
    gates,
    penalty,
    status,
)
from fgcompile.gates.flat import flatten
from fgcompile.gates.objective import Progress
from fgcompile.gates.selection import units_to_prune
from tests.gates.models import (
    bert,
    bert_batch,
    bert_specs,
    mlp,
    mlp_specs,
    quiet,
    site,
    spec,
)


def paper(**changes: Any) -> GateConfig:
    options = vars(GateConfig.paper_finegates_glue()) | changes
    return GateConfig(**options)


def two_groups() -> list[Any]:
    """Gates of 4 and 2 units, worth 1 and 8 parameters each."""
    first = spec("a", "mlp", [site("0", torch.arange(4))], 1.0)
    second = spec("b", "mlp", [site("1", torch.arange(2).repeat(2))], 8.0)
    return [first, second]


def four() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def set_logits(model: nn.Module, *values: list[float]) -> None:
    for gate, new in zip(gates(model).values(), values, strict=True):
        with torch.no_grad():
            gate.logits.add_(torch.tensor(new) - gate.theta)
    container_of(model).settle()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in gate_parameters(model) if p.grad is not None]


def openness(logits: list[float]) -> float:
    terms = [0.5 + 0.5 * math.erf((math.tanh(t) + 0.5) / 0.5 / 2**0.5) for t in logits]
    return sum(terms) / len(terms)


def test_finegates_term_is_the_l1_distance_of_the_papers() -> None:
    model = attach(four(), two_groups(), paper())
    first, second = [1.0, 0.2, -0.3, -2.0], [0.4, -1.0]
    set_logits(model, first, second)
    distances = [abs(openness(first) - 0.6), abs(openness(second) - 0.6)]
    assert penalty(model).item() == pytest.approx(50 * sum(distances) / 2, rel=1e-5)


def test_finegates_term_can_weight_groups_by_cost() -> None:
    model = attach(four(), two_groups(), paper(weighting="cost"))
    first, second = [1.0, 0.2, -0.3, -2.0], [0.4, -1.0]
    set_logits(model, first, second)
    distances = [abs(openness(first) - 0.6), abs(openness(second) - 0.6)]
    expected = 50 * (4 * distances[0] + 16 * distances[1]) / 20
    assert penalty(model).item() == pytest.approx(expected, rel=1e-5)


def test_finegates_term_has_the_gradient_of_its_closed_form() -> None:
    model = attach(four(), two_groups(), paper())
    logits = [1.0, 0.2, -0.3, -2.0]
    set_logits(model, logits, [1.0, 1.0])
    penalty(model).backward()
    theta = torch.tensor(logits, dtype=torch.float64)
    mu = theta.tanh()
    density = torch.exp(-(((mu + 0.5) / 0.5) ** 2) / 2) / math.sqrt(2 * math.pi)
    sign = 1 if openness(logits) > 0.6 else -1
    expected = 50 / 2 * sign * density / 0.5 * (1 - mu**2) / 4
    assert torch.allclose(gradients(model)[0].double(), expected, rtol=1e-4)


def test_finegates_term_waits_for_its_first_step() -> None:
    model = attach(four(), two_groups(), paper(begin=2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    terms = []
    for _ in range(4):
        loss = model(torch.randn(3, 4)).pow(2).mean()
        terms.append(penalty(model).item())
        optimizer.zero_grad()
        (loss + gates(model)["a"].theta.sum()).backward()
        optimizer.step()
    assert [term > 0 for term in terms] == [False, False, True, True]


def test_target_sparsity_is_not_the_fraction_of_zeros() -> None:
    # At the uniform solution of target 0.4 no unit is closed, so zeros are reported.
    model = attach(four(), two_groups(), paper())
    uniform = math.atanh(-0.373)
    set_logits(model, [uniform] * 4, [uniform] * 2)
    assert penalty(model).item() == pytest.approx(0.0, abs=0.05)
    assert status(model)["open"] == {"mlp": 1.0}


def test_multipliers_rise_with_the_gap_and_rest_where_gates_close_in_step() -> None:
    """Of 20 parameters, closing b's first unit leaves 12."""
    budget = Budget(params=0.5, steps=4, ascent=0.1)
    model = attach(four(), two_groups(), GateConfig(budget=budget))
    objective: Any = container_of(model).objective
    units = flatten(list(gates(model).values()))
    rate, moved = 0.1 * 6**0.5, torch.tensor(True)

    def after(updates: int, unanimity: float, moved: Tensor = moved) -> Any:
        progress = Progress(torch.tensor(updates), moved, torch.tensor(unanimity))
        objective.update(units, progress)
        return objective.l1.item(), objective.l2.item()

    assert after(1, 0.9) == (0.0, 0.0)
    assert after(2, 0.0, ~moved) == (0.0, 0.0)
    l1, l2 = after(2, 0.0)  # everything is open, and the target is 0.75
    assert (l1, l2) == pytest.approx((rate * 0.25, rate * 0.25**2))
    gates(model)["b"].close([0])
    units = flatten(list(gates(model).values()))
    l1, l2 = after(1, 0.9)  # now 0.6 is open, and 0.875 allowed: down, in step or not
    assert l1 == 0.0
    assert l2 == pytest.approx(rate * (0.25**2 + 0.275**2))
    assert after(4, 0.0) == (0.0, 0.0)  # the target is met, so the pressure ends


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"coupling": "non"}, r"coupling='non'\): expected one of shared, none"),
        ({"objective": "finegate"}, "expected one of budget, finegates, none"),
        ({"weighting": "x"}, "expected one of cost, equal"),
        ({"rate": "fast"}, r"rate='fast'\): expected one of auto"),
        ({"rate": 0.0}, r"rate=0\.0\): expected above 0"),
        ({"bound": -1.0}, "expected above 0"),
        ({"noise": -1.0}, r"noise=-1\.0\): expected at least 0"),
        ({"begin": -1}, "expected at least 0"),
        ({"weight": math.nan}, "expected at least 0"),
    ],
)
def test_what_is_no_choice_is_refused(options: Any, text: str) -> None:
    with pytest.raises(GateError, match=rf"^GateConfig\(.*{text}"):
        GateConfig(**options)


@pytest.mark.parametrize("options", [{"of": "whole"}, {"begin": -5}, {"ascent": -1}])
def test_what_is_no_budget_is_refused(options: Any) -> None:
    with pytest.raises(GateError, match=r"^Budget\(\w+=.*\): expected "):
        Budget(params=0.5, **options)


@pytest.mark.parametrize(
    "options", [{"begin": 3}, {"budget": Budget(params=0.5)}], ids=["begin", "budget"]
)
def test_gates_that_would_never_take_a_first_step_are_refused(options: Any) -> None:
    deaf: dict[str, Any] = {"noise": 0.0, "straight_through": False}
    with pytest.raises(GateError, match="no step would ever be counted"):
        GateConfig(**deaf, **options)
    GateConfig(**deaf)
    GateConfig(**(deaf | {"noise": 0.1}), **options)


def test_unreachable_target_sparsity_is_refused() -> None:
    with pytest.raises(GateError, match=r"0\.9 is unreachable.*\n.*0\.841"):
        GateConfig(target_sparsity=0.9)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("paper_finegates_glue", (1.0, 0.1, 0.4, 50.0, 0, 1e-3)),
        ("paper_finegates_posttrain", (1.0, 0.1, 0.3, 50.0, 0, 1e-2)),
        ("paper_finegates_pretrain", (1.0, 0.1, 0.4, 100.0, 1000, 1e-2)),
        ("peft_finegates", (0.9, 0.0, 0.2, 0.01, 0, None)),
    ],
)
def test_presets_are_those_of_the_papers(preset: str, expected: Any) -> None:
    c = getattr(GateConfig, preset)()
    found = (c.init_mean, c.noise, c.target_sparsity, c.weight, c.begin, c.lr)
    assert found == expected
    assert (c.rate, c.straight_through, c.init_std) == (None, False, 0.1)


def test_preset_starts_where_the_papers_start() -> None:
    model = attach(mlp(4000), mlp_specs(4000), GateConfig.paper_finegates_glue())
    logits = gate_parameters(model)[0].detach()
    assert float(logits.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(logits.std()) == pytest.approx(0.1, abs=0.01)


# -- budget -------------------------------------------------------------------------


def ready(budget: Budget, specs: Any = None, model: nn.Module | None = None) -> Any:
    """A gated model whose ramp has ended, all multipliers at 3 and 2."""
    model = attach(model or four(), specs or two_groups(), quiet(budget=budget))
    objective: Any = container_of(model).objective
    objective.l1.fill_(3.0)
    objective.l2.fill_(2.0)
    return model


def test_budget_term_is_the_lagrangian_of_the_counted_cost() -> None:
    model = ready(Budget(params=0.5))
    objective: Any = container_of(model).objective
    set_logits(model, [0.5, 0.5, -1.0, 0.5], [0.5, -0.8])
    objective.target.fill_(0.5)
    gap = (3 * 1 + 1 * 8) / 20 - 0.5
    expected = 3 * gap + 2 * gap**2
    assert penalty(model).item() == pytest.approx(expected, rel=1e-5)


def test_budget_term_weights_a_unit_by_what_it_costs() -> None:
    model = ready(Budget(params=0.5))
    set_logits(model, [0.3] * 4, [0.3] * 2)
    penalty(model).backward()
    first, second = gradients(model)
    assert (first > 0).all()
    assert torch.allclose(second, 8 * first[:2])


def test_budget_term_has_the_gradient_of_the_openness() -> None:
    model = ready(Budget(params=0.5))
    objective: Any = container_of(model).objective
    values = [0.5, 0.1, -0.2, 0.4]
    set_logits(model, values, [0.5, 0.5])
    objective.target.fill_(0.5)
    penalty(model).backward()
    theta = torch.tensor(values, requires_grad=True)
    share = (gates(model)["a"].parametrization.openness(theta) / 20).sum()
    (expected,) = torch.autograd.grad((3 + 2 * 2 * 0.5) * share, theta)
    assert torch.allclose(gradients(model)[0], expected, rtol=1e-4)


def test_limit_of_the_model_counts_what_is_not_gated() -> None:
    model = four()  # 40 parameters, of which 20 are gated
    attach(model, two_groups(), quiet(budget=Budget(params=0.8, of="model")))
    assert container_of(model).objective.goal == pytest.approx((0.6,))


def test_limit_below_what_is_not_gated_is_refused() -> None:
    text = r"Budget\(params=0\.4, of='model'\) cannot be met: 50\.0% of 40 params"
    with pytest.raises(GateError, match=text):
        attach(four(), two_groups(), quiet(budget=Budget(params=0.4, of="model")))


def test_macs_of_the_model_come_from_the_analysis() -> None:
    config = quiet(budget=Budget(macs=0.75, of="model"))
    model = attach(four(), two_groups(), config, model_macs=20.0)
    assert container_of(model).objective.goal == pytest.approx((0.5,))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "needs a limit"),
        ({"params": 0.0}, r"in \(0, 1\]"),
        ({"params": 60}, r"in \(0, 1\]"),
        ({"params": 0.5, "steps": 0}, "expected at least 1"),
        ({"params": 0.5, "evenness": 2}, "expected 0 to 1"),
    ],
)
def test_impossible_budgets_are_refused(options: Any, text: str) -> None:
    with pytest.raises(GateError, match=text):
        Budget(**options)


def test_budget_and_objective_must_agree() -> None:
    with pytest.raises(GateError, match="objective 'budget' with budget None"):
        GateConfig(objective="budget")
    with pytest.raises(GateError, match="plain gates do not learn"):
        GateConfig(gate="plain", budget=Budget(params=0.5))


# -- selection ----------------------------------------------------------------------


def prune(score: list[float], costs: list[list[float]], limits: list[float]) -> Tensor:
    as_double = (torch.tensor(v, dtype=torch.float64) for v in (costs, limits))
    return units_to_prune(torch.tensor(score), *as_double)


def test_lowest_scores_are_pruned_first() -> None:
    pruned = prune([3.0, 1.0, 2.0, 4.0], [[1.0] * 4], [2.0])
    assert pruned.tolist() == [False, True, True, False]


def test_ties_are_broken_by_order() -> None:
    assert prune([1.0] * 4, [[1.0] * 4], [3.0]).tolist() == [True] + [False] * 3


def test_cheap_units_fill_what_a_dear_one_would_overshoot() -> None:
    # The dear unit scores lowest but one; closing it would leave 4 of 9.
    pruned = prune([0.0, 1.0, 2.0, 3.0, 4.0], [[1, 5, 1, 1, 1]], [6.0])
    assert pruned.tolist() == [True, False, True, True, False]


def test_cost_is_never_above_the_limit_and_close_below_it() -> None:
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        costs = torch.randint(1, 6, (2, 40), generator=generator).double()
        limits = costs.sum(1) * torch.rand(2, generator=generator)
        score = torch.randn(40, generator=generator)
        protected = torch.rand(40, generator=generator) < 0.3
        pruned = units_to_prune(score, costs, limits, protected)
        kept = costs[:, ~pruned].sum(1)
        assert (kept <= limits + 1e-6).all()
        assert (limits - kept).min() < 5


def test_protected_units_go_last_but_go() -> None:
    score = torch.arange(6.0)
    costs = torch.ones(1, 6, dtype=torch.float64)
    protected = torch.tensor([True, True, False, False, False, False])
    kept = [
        (~units_to_prune(score, costs, torch.tensor([limit]), protected)).tolist()
        for limit in (3.0, 1.0)
    ]
    assert kept[0] == [True, True, False, False, False, True]
    assert kept[1] == [False, True, False, False, False, False]


def test_room_that_a_dear_unit_leaves_is_filled_again() -> None:
    costs = torch.tensor([[1, 1, 1, 1, 8, 8]], dtype=torch.float64)
    protected = torch.tensor([False, False, True, True, False, False])
    limit = torch.tensor([11.0])
    pruned = units_to_prune(torch.arange(6.0), costs, limit, protected)
    assert (~pruned).tolist() == [False, True, True, True, False, True]


@pytest.mark.parametrize(("evenness", "least"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_every_group_keeps_its_part_of_the_share(evenness: float, least: int) -> None:
    first = spec("a", "mlp", [site("0", torch.arange(8))])
    second = spec("b", "mlp", [site("1", torch.arange(8))])
    wide = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    budget = Budget(params=0.5, steps=1, evenness=evenness)
    model = attach(wide, [first, second], quiet(budget=budget))
    low, high = [-0.1 * n for n in range(1, 9)], [0.5] * 8
    set_logits(model, low, high)
    container_of(model).updates.fill_(1)
    container_of(model).settle()
    open_ = gates(model)["a"].open
    assert open_.tolist() == [True] * least + [False] * (8 - least)
    assert status(model)["cost"]["params"] == 0.5


def test_nothing_is_pruned_within_the_limit() -> None:
    thirds = [[1 / 3] * 3000]
    assert not prune([0.0] * 3000, thirds, [1000.0]).any()
    assert prune([0.0] * 3000, thirds, [999.9]).sum() == 1


def test_units_without_cost_stay() -> None:
    assert prune([0.0, 1.0, 2.0], [[0.0, 1.0, 1.0]], [1.0]).tolist()[0] is False


# -- status -------------------------------------------------------------------------


def test_status_counts_open_units_by_kind_and_cost() -> None:
    model = attach(bert(), bert_specs())
    gates(model)["bert.encoder.layer.0.attention"].close([0, 1])
    found = status(model)
    assert found["open"] == {"head": 6 / 8, "mlp": 1.0}
    gated = 8 * 1048 + 96 * 65
    assert found["cost"]["params"] == pytest.approx(1 - 2 * 1048 / gated)
    assert (found["forwards"], found["met"], found["problems"]) == (0, True, [])


def test_penalty_that_never_ran_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = attach(mlp(), mlp_specs())
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        model(torch.randn(2, 8)).sum().backward()
        optimizer.step()
    found = status(model)
    assert (found["forwards"], found["penalties"]) == (3, 0)
    assert "penalty never ran in 3 training forwards" in caplog.text


def test_penalty_that_was_added_twice_is_reported() -> None:
    model = attach(bert(), bert_specs())
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        (model(**bert_batch()).loss + penalty(model)).backward()
        optimizer.step()
    (problem,) = status(model)["problems"]
    assert "ran 6 times in 3 training forwards" in problem


def test_gates_outside_the_optimizer_are_reported() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    attach(model, mlp_specs())
    for _ in range(3):
        (model(torch.randn(2, 8)).sum() + penalty(model)).backward()
        optimizer.step()
    (problem,) = status(model)["problems"]
    assert "no gate moved in 3 training forwards" in problem


def half_after(steps: int, trained: int) -> nn.Module:
    budget = Budget(params=0.5, steps=steps)
    model = attach(mlp(), mlp_specs(), quiet(budget=budget))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(trained):
        optimizer.zero_grad()
        (model(torch.randn(2, 8)).sum() + penalty(model)).backward()
        optimizer.step()
    return model


def levels_of(caplog: pytest.LogCaptureFixture, model: nn.Module) -> list[str]:
    caplog.clear()
    with caplog.at_level("INFO"):
        status(model)
    return [r.levelname for r in caplog.records if "not met" in r.message]


def test_budget_on_its_way_is_no_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = half_after(steps=50, trained=10)
    assert levels_of(caplog, model) == ["INFO"]
    # Behind its schedule, and after it.
    module = importlib.import_module("fgcompile.gates.status")  # not the function
    for now in (0.8, 0.5):
        limits = {"params": now}, {"params": 0.5}
        monkeypatch.setattr(module, "limits_of", lambda _, x=limits: x)
        assert levels_of(caplog, model) == ["WARNING"]


def test_lowering_warns_of_a_budget_that_is_on_its_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = half_after(steps=50, trained=10)
    lower(model, example_inputs=(torch.randn(2, 8),))
    assert "the budget is not met: " in caplog.text


def test_missed_budget_is_reported() -> None:
    model = half_after(steps=50, trained=10)
    found = status(model)
    assert not found["met"]
    assert found["steps"] == 10
    assert found["target"]["params"] == pytest.approx(0.9)
    assert "the limit is 50.0%, and step 10 allows 90.0%" in found["problems"][0]
