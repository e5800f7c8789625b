"""Gates on eager models: where they act, copies, and taking them off again."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fgcompile.errors import GateError
from fgcompile.gates import (
    GateConfig,
    attach,
    gate_parameters,
    gates,
    param_groups,
    penalty,
    remove_gates,
)
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


def trace(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Everything that a module holds, by path."""
    return {path: dict(vars(m)) for path, m in module.named_modules()}


@pytest.mark.parametrize("gate", ["finegates", "hard_concrete", "plain"])
def test_attaching_changes_neither_class_nor_eval_output(gate: str) -> None:
    model = bert().eval()
    kind, batch = type(model), bert_batch()
    before = model(**batch).logits
    assert attach(model, bert_specs(), GateConfig(gate=gate)) is model
    assert type(model) is kind
    assert torch.equal(model(**batch).logits, before)


def test_gates_are_ordered_as_their_specs() -> None:
    model = attach(bert(), bert_specs())
    assert list(gates(model)) == [s.name for s in bert_specs()]
    assert [g.kind for g in gates(model).values()] == ["head", "mlp", "head", "mlp"]


def test_closed_channels_are_those_of_a_zeroed_weight() -> None:
    model, reference = mlp().eval(), mlp().eval()
    reference.load_state_dict(model.state_dict())
    x = torch.randn(5, 8)
    attach(model, mlp_specs())
    gates(model)["hidden"].close([1, 7])
    with torch.no_grad():
        reference[2].weight[:, [1, 7]] = 0
    assert torch.allclose(model(x), reference(x), atol=1e-6)


def test_closed_head_is_that_of_a_zeroed_weight() -> None:
    model = bert().eval()
    reference = copy.deepcopy(model)
    attach(model, bert_specs())
    gates(model)["bert.encoder.layer.1.attention"].close([2])
    with torch.no_grad():
        out = reference.bert.encoder.layer[1].attention.output.dense
        out.weight[:, 16:24] = 0
    got, want = model(**bert_batch()).logits, reference(**bert_batch()).logits
    assert torch.allclose(got, want, atol=1e-6)


def test_index_without_unit_keeps_factor_one() -> None:
    model = mlp().eval()
    x, before = torch.randn(5, 8), mlp()
    before.load_state_dict(model.state_dict())
    index = torch.tensor([0, 1, -1, -1] * 4)
    attach(model, [spec("part", "mlp", [site("2", index)])])
    gates(model)["part"].close([0, 1])
    with torch.no_grad():
        before[2].weight[:, index >= 0] = 0
    assert torch.allclose(model(x), before(x), atol=1e-6)


def test_one_gate_serves_many_sites_with_one_sample() -> None:
    index = torch.arange(16)
    sites = [site("2", index), site("1", index, where="output")]
    model = attach(mlp(), [spec("hidden", "mlp", sites)])
    seen = [p.factors() for _ in range(2) for p in model.fgcompile_gates.sites]
    assert all(torch.equal(factors, seen[0]) for factors in seen)
    model(torch.randn(2, 8))
    assert not torch.equal(model.fgcompile_gates.sites[0].factors(), seen[0])


class Keyworded(nn.Module):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x, x * scale if scale is not None else x


class Caller(nn.Module):
    def __init__(self, by_keyword: bool) -> None:
        super().__init__()
        self.inner, self.by_keyword = Keyworded(), by_keyword

    def forward(self, x: Tensor) -> Any:
        if self.by_keyword:
            return self.inner(scale=torch.ones(3), x=x)
        return self.inner(x, torch.ones(3))


@pytest.mark.parametrize("by_keyword", [True, False])
@pytest.mark.parametrize("name", ["0", "x"])
def test_argument_is_gated_however_it_is_passed(by_keyword: bool, name: str) -> None:
    model = Caller(by_keyword)
    attach(model, [spec("g", "mlp", [site("inner", torch.arange(3), name=name)])])
    gates(model)["g"].close([1])
    first, second = model.eval()(torch.ones(2, 3))
    assert first.tolist() == second.tolist() == [[1, 0, 1]] * 2


def test_missing_argument_is_named() -> None:
    model = Caller(True)
    with pytest.raises(GateError, match=r"input 7 of inner.*forward takes x, scale"):
        attach(model, [spec("g", "mlp", [site("inner", torch.arange(3), name="7")])])
    assert "fgcompile_gates" not in model._modules


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, b],
        lambda a, b: Pair(a, b),
        lambda a, b: OrderedDict(first=a, second=b),
    ],
    ids=["tuple", "list", "named tuple", "mapping"],
)
def test_one_of_several_results_is_gated(make: Any) -> None:
    model = nn.Sequential(Returns(make))
    gated = site("0", torch.arange(3), where="output", name="1")
    attach(model, [spec("g", "mlp", [gated])])
    gates(model)["g"].close([0])
    result = model.eval()(torch.ones(1, 3))
    assert type(result) is type(make(1, 2))
    first, second = result.values() if isinstance(result, dict) else result
    assert (first.tolist(), second.tolist()) == ([[1, 1, 1]], [[0, 1, 1]])


def test_wrong_size_at_a_site_is_named() -> None:
    model = attach(mlp(), [spec("g", "mlp", [site("2", torch.arange(5))])])
    with pytest.raises(GateError, match=r"g expects size 5 at input 0 of 2, dim -1"):
        model(torch.randn(2, 8))


class Attention(nn.Module):
    """A block around nn.MultiheadAttention, whose out_proj no call passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def attention_spec() -> Any:
    index = torch.arange(4).repeat_interleave(4)
    gated = site("attention", index, where="parameter", name="out_proj.weight", dim=1)
    return spec("heads", "head", [gated])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_functionally_used_parameter_is_gated(training: bool, grad: bool) -> None:
    # Without gradients, eval takes the fused inference path.
    model = Attention()
    reference = copy.deepcopy(model).train(training)
    attach(model, [attention_spec()], quiet()).train(training)
    gates(model)["heads"].close([1, 2])
    with torch.no_grad():
        reference.attention.out_proj.weight[:, 4:12] = 0
    x = torch.randn(2, 5, 16)
    with torch.set_grad_enabled(grad):
        assert torch.allclose(model(x), reference(x), atol=1e-6)


def test_functionally_used_parameter_learns_and_keeps_its_name() -> None:
    model = attach(Attention(), [attention_spec()])
    model(torch.randn(2, 5, 16)).sum().backward()
    weight = dict(model.named_parameters())["attention.out_proj.weight"]
    assert weight is model.attention.out_proj.weight
    assert weight.grad is not None
    assert all(p.grad is not None for p in gate_parameters(model))


def test_error_in_a_forward_leaves_no_gated_parameter_behind() -> None:
    model = attach(Attention(), [attention_spec()])
    with pytest.raises(AssertionError):
        model(torch.randn(2, 5, 7))
    assert "weight" not in vars(model.attention.out_proj)
    assert isinstance(model.attention.out_proj.weight, nn.Parameter)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformer_encoder_is_gated_when_padding_makes_nested_tensors() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    down = site("layers.1.linear2", torch.arange(32))
    reference = copy.deepcopy(model)
    attach(model, [spec("mlp", "mlp", [down])])
    gates(model)["mlp"].close([3])
    with torch.no_grad():
        reference.layers[1].linear2.weight[:, 3] = 0
        x, padding = torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)
        padding[1, 3:] = True
        got = model(x, src_key_padding_mask=padding)
        want = reference(x, src_key_padding_mask=padding)
    assert torch.allclose(got[~padding], want[~padding], atol=1e-6)


def test_deep_copy_has_gates_of_its_own() -> None:
    model = attach(bert(), bert_specs()).eval()
    twin = copy.deepcopy(model)
    batch = bert_batch()
    before = model(**batch).logits
    for gate in gates(twin).values():
        gate.close([0, 1])
    assert torch.equal(model(**batch).logits, before)
    assert not torch.equal(twin(**batch).logits, before)
    twin.train()(**batch).loss.backward()
    assert all(p.grad is None for p in gate_parameters(model))
    assert all(p.grad is not None for p in gate_parameters(twin))


def test_pickled_copy_has_gates_of_its_own() -> None:
    model = attach(Attention(), [attention_spec()]).eval()
    twin = pickle.loads(pickle.dumps(model))
    x = torch.randn(2, 5, 16)
    gates(twin)["heads"].close([0])
    assert not torch.equal(twin(x), model(x))


def test_state_dict_round_trip_restores_everything() -> None:
    model = attach(mlp(), mlp_specs())
    gates(model)["hidden"].close([4])
    with torch.no_grad():
        gate_parameters(model)[0].normal_()
    twin = attach(mlp(), mlp_specs())
    twin.load_state_dict(model.state_dict())
    x = torch.randn(3, 8)
    assert torch.equal(twin.eval()(x), model.eval()(x))


def test_inserting_twice_is_refused() -> None:
    model = attach(mlp(), mlp_specs())
    with pytest.raises(GateError, match="Sequential has gates already"):
        attach(model, mlp_specs())


def test_functions_of_an_ungated_model_say_so() -> None:
    for function in (gates, penalty, gate_parameters, remove_gates):
        with pytest.raises(GateError, match="Sequential has no gates"):
            function(mlp())


@pytest.mark.parametrize(
    ("model", "specs"),
    [(mlp, mlp_specs), (bert, bert_specs), (Attention, lambda: [attention_spec()])],
)
def test_removing_gates_leaves_no_trace(model: Any, specs: Any) -> None:
    made = model()
    before, state = trace(made), list(made.state_dict())
    remove_gates(attach(made, specs()))
    assert trace(made) == before
    assert list(made.state_dict()) == state


def test_hooks_of_others_stay() -> None:
    model, calls = mlp(), []
    model[2].register_forward_pre_hook(lambda *_: calls.append(1))
    remove_gates(attach(model, mlp_specs()))
    model(torch.randn(2, 8))
    assert calls == [1]


def test_parameter_groups_separate_gates_from_weights() -> None:
    model = attach(mlp(), mlp_specs(), GateConfig.paper_finegates_glue())
    weights, own = param_groups(model, lr=2e-5, weight_decay=0.1)
    assert (weights["lr"], weights["weight_decay"]) == (2e-5, 0.1)
    assert (own["lr"], own["weight_decay"]) == (1e-3, 0.0)
    assert len(weights["params"]) == 4
    assert own["params"] == gate_parameters(model)
    assert param_groups(model, lr=2e-5, gate_lr=0.0)[1]["lr"] == 0.0


def test_plain_gates_have_nothing_to_train() -> None:
    model = attach(mlp(), mlp_specs(), GateConfig(gate="plain"))
    assert gate_parameters(model) == []
    x = torch.randn(2, 8)
    open_ = model(x)
    gates(model)["hidden"].close(list(range(16)))
    assert not torch.equal(model(x), open_)
    assert torch.equal(model(x), model[2].bias.expand(2, 3))


def test_contradicting_specs_are_refused() -> None:
    good = mlp_specs()[0]
    with pytest.raises(GateError, match="gate hidden is specified twice"):
        attach(mlp(), [good, good])
    with pytest.raises(GateError, match="nothing to gate"):
        attach(mlp(), [])
    far = (site("2", torch.tensor([0, 20])),)
    bad = dataclasses.replace(good, name="other", sites=far)
    with pytest.raises(
        GateError, match="spans 0 to 20, but the gate has units 0 to 15"
    ):
        attach(mlp(), [good, bad])
    with pytest.raises(GateError, match="no module 'encoder'"):
        attach(mlp(), [spec("g", "mlp", [site("encoder", torch.arange(3))])])
