"""One gate: its factors, and what the user can do to it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from fgcompile.errors import GateError
from fgcompile.gates import Gate
from fgcompile.gates.parametrization import FineGates


def gate(size: int = 5, **options: Any) -> Gate:
    published = FineGates(**options.pop("published", {}))
    generator = torch.Generator().manual_seed(0)
    return Gate("blocks.0.mlp", "mlp", size, published, generator=generator, **options)


def test_new_gate_is_open() -> None:
    made = gate()
    assert (made.name, made.kind, made.size) == ("blocks.0.mlp", "mlp", 5)
    assert made.open.tolist() == [True] * 5
    assert made.eval().value().tolist() == [1.0] * 5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("straight_through", [True, False])
def test_closed_unit_is_zero_and_does_not_learn(
    training: bool, straight_through: bool
) -> None:
    made = gate(straight_through=straight_through, published={"mean": 0.0})
    made.train(training).close([1, 4])
    made.value().sum().backward()
    assert made.logits.grad is not None
    assert (made.value() == 0).tolist() == [False, True, False, False, True]
    assert (made.logits.grad == 0).tolist() == [False, True, False, False, True]


def test_reopened_unit_is_as_before() -> None:
    made = gate().eval()
    before = made.value()
    made.close(torch.tensor([0, 2]))
    made.reopen()
    assert torch.equal(made.value(), before)


def test_index_out_of_range_names_gate_index_and_size() -> None:
    made = gate()
    text = "index 5 is out of range for gate blocks.0.mlp with 5 units"
    with pytest.raises(GateError, match=re.escape(text)):
        made.close([0, 5])
    with pytest.raises(GateError, match="index -1 is out of range"):
        made.close(torch.tensor([-1]))
    assert made.open.all()


def test_masks_are_not_taken_for_indices() -> None:
    with pytest.raises(GateError, match=r"torch\.bool.*\n.*mask\.nonzero"):
        gate().close(torch.tensor([True, False, True, False, False]))


def test_closing_nothing_is_fine() -> None:
    made = gate()
    made.close([])
    assert made.open.all()


def test_saturated_factor_has_no_gradient_unless_straight_through() -> None:
    # The published start: tanh(1) + 0.5 = 1.26, beyond the clamp.
    for straight_through, flat in ((False, True), (True, False)):
        made = gate(straight_through=straight_through, published={"std": 0.0})
        made.value().sum().backward()
        assert made.logits.grad is not None
        assert bool((made.logits.grad == 0).all()) is flat


def test_pruned_unit_is_zero_but_learns_when_straight_through() -> None:
    made = gate(straight_through=True, floor=0.01)
    made.pruned[2] = True
    made.value().sum().backward()
    assert made.logits.grad is not None
    assert (made.value() == 0).tolist() == [False, False, True, False, False]
    assert (made.logits.grad != 0).all()


def test_floor_keeps_units_open_that_the_budget_keeps() -> None:
    made = gate(floor=0.01, published={"mean": -3.0, "std": 0.0}).eval()
    assert made.value().tolist() == pytest.approx([0.01] * 5)


def test_noise_is_drawn_only_on_request() -> None:
    made = gate(published={"mean": 0.0})
    made.sample_noise()
    first = made.value()
    assert torch.equal(made.value(), first)
    made.sample_noise()
    assert not torch.equal(made.value(), first)


def test_noise_is_in_training_factors_alone() -> None:
    made = gate(published={"mean": 0.0})
    made.sample_noise()
    mean = torch.tanh(made.theta) + 0.5
    noise: Any = made.noise
    assert noise.abs().min() > 0
    assert torch.allclose(made.value(), (mean + noise).clamp(0, 1))
    assert torch.allclose(made.eval().value(), mean.clamp(0, 1))


def test_gates_follow_the_device_but_stay_float32() -> None:
    made = gate()
    before = made.logits.detach().clone()
    made.to(torch.bfloat16)
    assert torch.equal(made.logits, before)
    made.to("meta")
    assert (made.logits.dtype, made.closed.dtype) == (torch.float32, torch.bool)
    assert made.logits.device.type == "meta"
