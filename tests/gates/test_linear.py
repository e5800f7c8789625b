"""Gates on the input of a linear layer that act on its weight while it trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fgcompile.gates import GateConfig, attach, gates
from fgcompile.gates import hooks as gate_hooks
from fgcompile.gates.linear import costs_less_on_weight, gated_weight
from tests.gates.models import mlp, mlp_specs


@pytest.fixture
def on_weight(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights that were gated in place of an input."""
    seen: list[Tensor] = []

    def noted(weight: Tensor, z: Tensor) -> object:
        seen.append(weight)
        return gated_weight(weight, z)

    monkeypatch.setattr(gate_hooks, "gated_weight", noted)
    return seen


def reference(model: nn.Sequential, x: Tensor, z: Tensor) -> Tensor:
    hidden = model[1](model[0](x))
    out: Tensor = model[2](hidden * z)
    return out


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_those_of_the_gated_input(
    frozen: bool, bias: bool, on_weight: list[Tensor]
) -> None:
    plain, model = mlp(), mlp()
    plain.load_state_dict(model.state_dict())
    for each in (plain, model):
        each[2].weight.requires_grad_(not frozen)
        if not bias:
            each[2].bias = None
    attach(model.train(), mlp_specs(), GateConfig(objective="none"))
    gate = gates(model)["hidden"]
    gate.close([1, 3])
    x = torch.randn(3, 50, 8)
    y = model(x)
    z = gate.training_value().detach().requires_grad_()
    expected = reference(plain, x, z)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=False):
        torch.testing.assert_close(ours.grad, theirs.grad)
    open_units = ~gate.closed
    assert z.grad is not None
    felt = torch.autograd.grad(gate.training_value(), gate.logits, z.grad)[0]
    assert gate.logits.grad is not None
    torch.testing.assert_close(gate.logits.grad[open_units], felt[open_units])
    assert on_weight == [model[2].weight]
    assert "weight" not in vars(model[2])


@pytest.mark.parametrize("frozen", [False, True])
def test_derivatives_agree_with_finite_differences(frozen: bool) -> None:
    weight = torch.randn(2, 4, dtype=torch.float64, requires_grad=not frozen)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([0.0, 0.01, 0.7, 1.0], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def product(x: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, gated_weight(weight, z), bias)

    assert torch.autograd.gradcheck(product, (x, z, bias))
    assert torch.autograd.gradgradcheck(product, (x, z, bias))


@pytest.mark.parametrize("frozen", [False, True])
def test_autocast_is_that_of_the_layer(frozen: bool) -> None:
    model = attach(mlp().train(), mlp_specs(), GateConfig(objective="none"))
    model[2].weight.requires_grad_(not frozen)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(50, 8))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert gates(model)["hidden"].logits.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model[0].parameters())


def test_training_keeps_no_gated_copy_of_the_input() -> None:
    def kept(model: nn.Module) -> int:
        found: set[int] = set()

        def pack(saved: Tensor) -> Tensor:
            if saved.numel() == 50 * 16:
                found.add(saved.untyped_storage().data_ptr())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            y = model(torch.randn(50, 8))
        del y
        return len(found)

    plain = kept(mlp().train())
    assert plain > 0
    gated = attach(mlp().train(), mlp_specs(), GateConfig(objective="none"))
    assert kept(gated) == plain


def test_the_weight_is_shown_again_after_an_error() -> None:
    model = attach(mlp().train(), mlp_specs(), GateConfig(objective="none"))

    def fail(module: nn.Module, args: object) -> None:
        assert "weight" in vars(module)
        raise RuntimeError("on purpose")

    handle = model[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(torch.randn(50, 8))
    handle.remove()
    assert model[2].weight is model[2]._parameters["weight"]
    model(torch.randn(50, 8)).sum().backward()


def _eval(layer: nn.Linear) -> None:
    layer.eval()


def _patched(layer: nn.Linear) -> None:
    layer.forward = layer.forward  # type: ignore[method-assign]


def _shown(layer: nn.Linear) -> None:
    vars(layer)["weight"] = layer.weight.detach()


def _parametrized(layer: nn.Linear) -> None:
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())


@pytest.mark.parametrize("change", [_eval, _patched, _shown, _parametrized])
def test_a_layer_that_may_not_read_its_weight_has_its_input_gated(
    change: Callable[[nn.Linear], None],
) -> None:
    layer, x = nn.Linear(4, 2), torch.randn(50, 4)
    assert costs_less_on_weight(layer, x, -1)
    assert costs_less_on_weight(layer, x, 1)
    assert not costs_less_on_weight(layer, x, 0)
    assert not costs_less_on_weight(layer, x[:2], -1)  # no larger than the weight
    assert not costs_less_on_weight(layer, x.to("meta"), -1)
    change(layer)
    assert not costs_less_on_weight(layer, x, -1)
