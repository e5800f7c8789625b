"""Gates on the input of a linear layer that act on its weight while it trains."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as every
from torch.utils.checkpoint import checkpoint

from fgcompile import methods
from fgcompile.gates import GateConfig, attach, gates, remove_gates
from fgcompile.gates import hooks as gate_hooks
from fgcompile.gates.linear import costs_less_on_weight, gated_weight
from tests.gates.models import mlp, mlp_specs, quiet


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


def test_the_weight_is_shown_again_after_an_error(on_weight: list[Tensor]) -> None:
    model = attach(mlp().train(), mlp_specs(), GateConfig(objective="none"))
    bias = model[2].bias
    model[2].bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(RuntimeError):
        model(torch.randn(50, 8))
    assert len(on_weight) == 1
    assert model[2].weight is model[2]._parameters["weight"]
    model[2].bias = bias
    model(torch.randn(50, 8)).sum().backward()


def _forward_hook(layer: nn.Module, see: Callable[..., None]) -> None:
    layer.register_forward_hook(see)


def _pre_hook(layer: nn.Module, see: Callable[..., None]) -> None:
    layer.register_forward_pre_hook(see)


@pytest.mark.parametrize("register", [_forward_hook, _pre_hook])
def test_hooks_of_others_see_the_gated_input(
    register: Callable[[nn.Module, Callable[..., None]], None],
    on_weight: list[Tensor],
) -> None:
    model = attach(mlp().train(), mlp_specs(), quiet(objective="none"))
    gates(model)["hidden"].close([2])
    seen: list[Tensor] = []
    register(model[2], lambda module, args, *output: seen.append(args[0]))
    model(torch.rand(50, 8))
    assert (seen[0][:, 2] == 0).all()
    assert seen[0].count_nonzero() > 0
    assert on_weight == []


def test_backward_hooks_of_others_see_the_gradient_of_the_gated_input(
    on_weight: list[Tensor],
) -> None:
    model = attach(mlp().train(), mlp_specs(), quiet(objective="none"))
    seen: list[Tensor] = []
    model[2].register_full_backward_hook(lambda m, grads, out: seen.append(grads[0]))
    model(torch.rand(50, 8)).sum().backward()
    torch.testing.assert_close(seen[0], model[2].weight.sum(0).expand(50, -1))
    assert on_weight == []


ROWS = (torch.randn(2, 8),)
TASK = methods.S2ftConfig(channels=0.25)
PST = methods.PstConfig(steps=10, sparsity=0.5)
METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "low rank": lambda model: methods.insert_low_rank(model, example_inputs=ROWS),
    "S2FT": lambda model: methods.insert_s2ft(model, TASK, example_inputs=ROWS),
    "PST": lambda model: methods.insert_pst(model, PST, example_inputs=ROWS),
}


@pytest.mark.parametrize("method", METHODS)
def test_what_methods_add_is_gated_in_training_as_in_eval(method: str) -> None:
    model = attach(mlp(), mlp_specs(), quiet(objective="none"))
    METHODS[method](model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    gates(model)["hidden"].close([1, 3, 5])
    x = torch.randn(50, 8)
    torch.testing.assert_close(model.train()(x), model.eval()(x))


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
    assert costs_less_on_weight(layer, x, -1, 4)
    assert costs_less_on_weight(layer, x, 1, 4)
    assert not costs_less_on_weight(layer, x, 0, 4)
    assert not costs_less_on_weight(layer, x, -1, 5)
    assert not costs_less_on_weight(layer, x[:2], -1, 4)  # no larger than the weight
    assert not costs_less_on_weight(layer, x.to("meta"), -1, 4)
    change(layer)
    assert not costs_less_on_weight(layer, x, -1, 4)


def _another_forward(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(nn.Linear, "forward", lambda self, x: self.weight.sum() * x)


def _another_linear(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(functional, "linear", lambda x, weight, bias=None: x @ weight.T)


@pytest.mark.parametrize("change", [_another_forward, _another_linear])
def test_linear_layers_that_are_not_those_of_torch_have_their_input_gated(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    assert not costs_less_on_weight(nn.Linear(4, 2), torch.randn(50, 4), -1, 4)


def test_who_follows_all_calls_sees_the_gated_input(on_weight: list[Tensor]) -> None:
    model = attach(mlp().train(), mlp_specs(), quiet(objective="none"))
    model[2].weight.requires_grad_(False)
    x = torch.randn(50, 8)
    with torch.device("cpu"):  # a mode that sees every function
        model(x)
    torch.func.vmap(model[2])(torch.randn(2, 50, 16))
    handle = every.register_module_forward_hook(lambda module, args, output: None)
    model(x)
    handle.remove()
    assert on_weight == []
    model(x)
    assert on_weight == [model[2].weight]


def test_many_gradients_at_once_are_those_one_by_one(on_weight: list[Tensor]) -> None:
    model = attach(mlp().train(), mlp_specs(), quiet(objective="none"))
    model[2].weight.requires_grad_(False)
    x = torch.randn(50, 8, requires_grad=True)
    y = model(x).sum(0)
    each = [
        torch.autograd.grad(y, x, row, retain_graph=True)[0] for row in torch.eye(3)
    ]
    (at_once,) = torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    torch.testing.assert_close(at_once, torch.stack(each))
    assert len(on_weight) == 1


@pytest.mark.parametrize("frozen", [False, True])
def test_an_interrupt_leaves_nothing_that_matters(frozen: bool) -> None:
    model = attach(mlp().train(), mlp_specs(), quiet(objective="none"))
    model[2].weight.requires_grad_(not frozen)
    x = torch.randn(50, 8)
    expected = model(x)
    before = dict(vars(model[2]))
    hook = next(iter(model[2]._forward_pre_hooks.values()))
    # What a forward has done when Ctrl-C stops it: torch calls no hook then.
    hook(model[2], (torch.randn(50, 16),), {})
    assert "weight" in vars(model[2])
    assert pickle.loads(pickle.dumps(hook)).shown is None
    torch.testing.assert_close(model(x), expected)
    assert vars(model[2]).keys() == before.keys()
    hook(model[2], (torch.randn(50, 16),), {})
    remove_gates(model)
    assert vars(model[2]).keys() == before.keys()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_forwards_give_the_same_gradients(
    frozen: bool, reentrant: bool, on_weight: list[Tensor]
) -> None:
    model = attach(mlp().train(), mlp_specs(), quiet(objective="none"))
    model[2].weight.requires_grad_(not frozen)
    x = torch.randn(50, 8, requires_grad=True)
    found = []
    for recompute in (False, True):
        y = checkpoint(model, x, use_reentrant=reentrant) if recompute else model(x)
        model.zero_grad()
        y.square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
        assert "weight" not in vars(model[2])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert len(on_weight) == 3
