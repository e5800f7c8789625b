"""Folding gates into weights: equal outputs in the plain class, or a refusal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates import GateConfig, attach, gates, remove_gates
from tests.gates.models import bert, bert_batch, bert_specs, site, spec


def random_gates(model: nn.Module) -> None:
    """Fractional factors, and one closed unit in every gate."""
    for gate in gates(model).values():
        with torch.no_grad():
            gate.logits.uniform_(-0.9, 0.0)
        gate.close([0])
        factors = gate.eval_value()[1:]
        assert ((factors > 0) & (factors < 1)).any()


def folded_equals_gated(
    model: nn.Module, specs: list[Any], *inputs: Any, gate: str = "finegates"
) -> None:
    plain = type(model)
    attach(model.eval(), specs, GateConfig(gate=gate))
    random_gates(model)
    kwargs = inputs[0] if inputs and isinstance(inputs[0], dict) else {}
    args = () if kwargs else inputs
    want = model(*args, **kwargs)
    got = remove_gates(model, fold=True)(*args, **kwargs)
    assert type(model) is plain
    for a, b in zip(_tensors(got), _tensors(want), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def _tensors(output: Any) -> list[Tensor]:
    values = output.values() if isinstance(output, dict) else [output]
    return [value for value in values if isinstance(value, Tensor)]


@pytest.mark.parametrize("gate", ["finegates", "hard_concrete"])
def test_linear_layers_take_their_gates(gate: str) -> None:
    folded_equals_gated(bert(), bert_specs(), bert_batch(), gate=gate)


CASES = {
    "square linear, input": (lambda: nn.Linear(6, 6), "input", -1, (3, 6)),
    "square linear, output": (lambda: nn.Linear(6, 6), "output", -1, (3, 6)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), "output", -1, (3, 4)),
    "convolution, input": (lambda: nn.Conv2d(6, 4, 3), "input", -3, (2, 6, 5, 5)),
    "convolution, output": (lambda: nn.Conv2d(4, 6, 3), "output", -3, (2, 4, 5, 5)),
    "strided, dilated": (
        lambda: nn.Conv1d(6, 6, 3, stride=2, dilation=2, padding=1),
        "output",
        -2,
        (2, 6, 9),
    ),
    "layer norm": (lambda: nn.LayerNorm(6), "output", -1, (2, 3, 6)),
    "rms norm": (lambda: nn.RMSNorm(6), "output", -1, (2, 3, 6)),
    "batch norm": (lambda: nn.BatchNorm2d(6), "output", -3, (2, 6, 4, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_module_with_a_weight_takes_its_gate(case: str) -> None:
    make, where, dim, shape = CASES[case]
    gated = site("0", torch.arange(6), where=where, dim=dim)
    model = nn.Sequential(make(), nn.Tanh())
    folded_equals_gated(model, [spec("g", "mlp", [gated])], torch.randn(shape))


def test_transposed_weight_takes_its_gate() -> None:
    transformers = pytest.importorskip("transformers")
    layer = transformers.pytorch_utils.Conv1D(6, 6)
    model = nn.Sequential(layer)
    for where in ("input", "output"):
        gated = site("0", torch.arange(6), where=where)
        specs = [spec("g", "mlp", [gated])]
        folded_equals_gated(copy.deepcopy(model), specs, torch.randn(2, 6))


def test_embedding_takes_its_gate() -> None:
    gated = site("0", torch.arange(6), where="output")
    model = nn.Sequential(nn.Embedding(9, 6))
    folded_equals_gated(model, [spec("g", "mlp", [gated])], torch.arange(9)[None])


def test_functionally_used_parameter_takes_its_gate() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    index = torch.arange(2).repeat_interleave(4)
    gated = site("", index, where="parameter", name="out_proj.weight", dim=1)
    attach(model, [spec("g", "head", [gated])])
    random_gates(model)
    x = torch.randn(2, 3, 8)
    want = model(x, x, x)[0]
    assert torch.allclose(remove_gates(model, fold=True)(x, x, x)[0], want, atol=1e-6)


class OnePlusNorm(nn.Module):
    """A norm whose weight is stored as the distance from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.weight)


class Positions(nn.Module):
    """A table of rows that are added; no input is as wide as it is long."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.shape[-2]]


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (nn.LayerNorm(6), "input"),
        (nn.Tanh(), "output"),
        (OnePlusNorm(), "output"),
        (Positions(), "output"),
    ],
    ids=["statistics", "no weight", "weight that is no factor", "refused trial"],
)
def test_gate_that_no_weight_takes_is_refused(module: nn.Module, where: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), module)
    gated = site("1", torch.arange(6), where=where)
    attach(model, [spec("g", "mlp", [site("0", torch.arange(6)), gated])])
    random_gates(model)
    before = [copy.deepcopy(m.state_dict()) for m in (model[0], model[1])]
    with pytest.raises(GateError, match=f"cannot fold the gate at {where} 0 of 1"):
        remove_gates(model, fold=True)
    after = [m.state_dict() for m in (model[0], model[1])]
    assert all(
        torch.equal(now[name], then[name])
        for now, then in zip(after, before, strict=True)
        for name in then
    )
    assert gates(model)


def test_shared_weight_is_refused() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    attach(model, [spec("g", "mlp", [site("0", torch.arange(6))])])
    with pytest.raises(GateError, match=r"shared by 0\.weight, 1\.weight"):
        remove_gates(model, fold=True)


class Noting:
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Changes nothing, which nobody can tell from outside."""


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("own", [True, False], ids=["weight", "output"])
def test_hook_that_may_change_what_is_folded_is_refused(own: bool) -> None:
    model: Any = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    if own:
        torch.nn.utils.weight_norm(model[0])
    attach(model, [spec("g", "mlp", [site("0", torch.arange(6), where="output")])])
    if not own:
        model[0].register_forward_hook(Noting())
    name = r"torch\.nn\.utils\.weight_norm\.WeightNorm" if own else r"\S+\.Noting"
    text = rf"cannot fold the gate at output 0 of 0.*: the hook {name} acts on"
    with pytest.raises(GateError, match=text):
        remove_gates(model, fold=True)
    assert gates(model)


def test_running_statistics_do_not_move() -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(6)).train()
    gated = site("0", torch.arange(6), where="output", dim=-3)
    attach(model, [spec("g", "conv", [gated])])
    remove_gates(model, fold=True)
    assert model.training
    assert model[0].training
    assert int(model[0].num_batches_tracked) == 0
