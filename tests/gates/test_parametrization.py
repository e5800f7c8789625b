"""The published gates against closed forms, sampling and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from fgcompile.errors import GateError
from fgcompile.gates.parametrization import (
    FineGates,
    HardConcrete,
    Parametrization,
    Plain,
    parametrization,
)

THETA = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)


def many(gate: Parametrization, theta: float, count: int = 200_000) -> torch.Tensor:
    noise = torch.empty(count)
    gate.sample_(noise)
    return gate.stretched(torch.full((count,), theta), noise)


def test_finegates_factor_is_shifted_tanh() -> None:
    expected = [math.tanh(t) + 0.5 for t in THETA.tolist()]
    assert FineGates().stretched(THETA, None).tolist() == pytest.approx(expected)


def test_finegates_openness_is_the_erf_of_the_papers() -> None:
    mu = THETA.tanh()
    erf = torch.erf((-0.5 - mu) / (0.5 * math.sqrt(2)))
    assert torch.allclose(FineGates().openness(THETA), 0.5 - 0.5 * erf)


def test_finegates_openness_spans_one_to_three_sigma() -> None:
    low, high = FineGates().openness(torch.tensor([-30.0, 30.0])).tolist()
    assert (low, high) == pytest.approx((0.1587, 0.99865), abs=1e-4)


def test_finegates_starts_at_one_with_deviation_a_tenth() -> None:
    start = FineGates().initial(20_000, torch.Generator().manual_seed(0))
    assert float(start.mean()) == pytest.approx(1.0, abs=0.003)
    assert float(start.std()) == pytest.approx(0.1, abs=0.003)


@pytest.mark.parametrize("theta", [-0.7, -0.5, -0.4])
def test_finegates_opens_as_often_as_its_noise_says(theta: float) -> None:
    # The deviation of the noise is 0.1, not the 0.5 of the openness.
    probability = torch.special.ndtr(torch.tensor((math.tanh(theta) + 0.5) / 0.1))
    opened = (many(FineGates(), theta) > 0).float().mean()
    assert float(opened) == pytest.approx(float(probability), abs=0.005)


@pytest.mark.parametrize("theta", [-4.0, -1.0, 0.0, 2.0])
def test_hard_concrete_opens_as_often_as_its_openness_says(theta: float) -> None:
    gate = HardConcrete()
    opened = (many(gate, theta) > 0).float().mean()
    expected = gate.openness(torch.tensor(theta))
    assert float(opened) == pytest.approx(float(expected), abs=0.005)


def test_hard_concrete_is_the_published_formula() -> None:
    gate, u = HardConcrete(), torch.tensor([0.1, 0.5, 0.9])
    s = torch.sigmoid((u.log() - (1 - u).log() + 0.3) / (2 / 3))
    got = gate.stretched(torch.tensor(0.3), torch.logit(u))
    assert torch.allclose(got, s * 1.2 - 0.1)


def test_hard_concrete_in_eval_has_no_temperature() -> None:
    got = HardConcrete().stretched(THETA, None)
    assert torch.allclose(got, THETA.sigmoid() * 1.2 - 0.1)


@pytest.mark.parametrize("gate", [FineGates(), HardConcrete()])
def test_gradients_agree_with_finite_differences(gate: Parametrization) -> None:
    theta = THETA.clone().requires_grad_()
    noise = torch.full_like(THETA, 0.05)
    assert torch.autograd.gradcheck(gate.openness, theta)
    assert torch.autograd.gradcheck(lambda t: gate.stretched(t, noise), theta)


@pytest.mark.parametrize("gate", [FineGates(), HardConcrete()])
def test_a_gate_closes_half_a_span_below_the_middle(gate: Parametrization) -> None:
    closed, full = (torch.tensor(s * gate.span / 2) for s in (-1, 1))
    assert float(gate.stretched(closed, None)) == pytest.approx(0.0, abs=1e-6)
    assert float(gate.stretched(full, None)) == pytest.approx(1.0, abs=1e-6)


def test_plain_gates_are_one() -> None:
    assert Plain().stretched(THETA, None).tolist() == [1.0] * 9


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(GateError, match="no gate called 'soft'"):
        parametrization("soft")
    with pytest.raises(GateError, match="gate 'plain' has no option 'noise'"):
        parametrization("plain", noise=0.1)
