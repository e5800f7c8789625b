"""Low-rank adapters under gates: the formula, training, merging, and those of peft."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import GateConfig, gates, insert_gates, lower, remove_gates
from fgcompile.errors import GateError
from fgcompile.methods import find_low_rank, insert_low_rank, merge_low_rank
from tests.gates.models import bert, bert_batch
from tests.gates.test_independent import set_factors
from tests.methods.models import gpt2, ids, llama, with_biases

COUPLINGS: Any = ("shared", "none")


def small_bert() -> Any:
    return with_biases(bert(num_hidden_layers=1))


def config(coupling: Any) -> GateConfig:
    return GateConfig(coupling=coupling, noise=0.0)


def moved(model: nn.Module) -> nn.Module:
    """Adapters as after some training."""
    adapters = find_low_rank(model)
    assert adapters is not None
    for adapter in adapters.each():
        adapter.b.data = 0.1 * torch.randn_like(adapter.b)
    return model


def close_some(model: nn.Module) -> None:
    for gate in gates(model).values():
        gate.close(range(gate.size // 4))
        (gate.logits if gate.anchor is None else gate.anchor).data -= 0.2


def batch() -> dict[str, Tensor]:
    return {"input_ids": ids(), "attention_mask": torch.ones_like(ids())}


def test_first_forward_is_that_of_gates_alone() -> None:
    model = insert_gates(small_bert(), config=config("none")).eval()
    close_some(model)
    expected = model(**batch()).logits
    insert_low_rank(model)
    assert torch.equal(model(**batch()).logits, expected)


def test_gates_act_on_weight_and_update_alike() -> None:
    model = insert_low_rank(insert_gates(small_bert(), config=config("none")))
    moved(model).eval()
    name = "bert.encoder.layer.0.intermediate.dense"
    rows, columns = torch.rand(48), torch.rand(32)
    set_factors(model, f"{name}.rows", rows)
    set_factors(model, f"{name}.columns", columns)
    dense = model.get_submodule(name)
    adapters = find_low_rank(model)
    assert adapters is not None
    (own,) = [a for a in adapters.each() if a.matrix.reader == name]
    x = torch.randn(2, 3, 32)
    gated = x * columns
    base = gated @ dense.weight.T + dense.bias
    expected = (base + gated @ own.a.T @ own.b.T) * rows
    assert torch.allclose(dense(x), expected, atol=1e-6)
    merged = (gated @ (dense.weight + own.b @ own.a).T + dense.bias) * rows
    assert torch.allclose(dense(x), merged, atol=1e-6)


def test_uncoupled_gates_come_before_adapters() -> None:
    model = insert_low_rank(small_bert())
    with pytest.raises(GateError, match="Insert gates before fgcompile's adapters"):
        insert_gates(model, config=config("none"))


def test_gradients_are_those_of_the_formula() -> None:
    model = moved(insert_low_rank(small_bert(), rank=3))
    adapters = find_low_rank(model)
    assert adapters is not None
    adapter = adapters.each()[-1]
    x, upstream = torch.randn(2, 3, 48), torch.randn(2, 3, 32)
    dense = model.get_submodule(adapter.matrix.reader)
    (dense(x) * upstream).sum().backward()
    full = upstream.flatten(0, 1).T @ x.flatten(0, 1)
    assert adapter.a.grad is not None
    assert adapter.b.grad is not None
    assert torch.allclose(adapter.b.grad, full @ adapter.a.T, atol=1e-4)
    assert torch.allclose(adapter.a.grad, adapter.b.T @ full, atol=1e-4)
    assert dense.weight.grad is None


def test_only_gates_and_adapters_are_trained() -> None:
    model = insert_low_rank(insert_gates(small_bert()))
    names = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert names == {"fgcompile_gates", "fgcompile_low_rank"}


def test_start_is_that_of_lora() -> None:
    adapters = find_low_rank(insert_low_rank(small_bert()))
    assert adapters is not None
    for adapter in adapters.each():
        bound = adapter.matrix.shape[1] ** -0.5
        assert adapter.a.shape[0] == 4
        assert not adapter.b.any()
        assert 0.8 * bound < float(adapter.a.detach().abs().max()) <= bound


@pytest.mark.parametrize("make", [small_bert, gpt2, llama])
def test_merged_model_computes_what_the_adapted_one_does(make: Any) -> None:
    model = moved(insert_low_rank(make()))
    expected = model(**batch()).logits
    merge_low_rank(model)
    assert torch.allclose(model(**batch()).logits, expected, atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())
    assert not any("low_rank" in name for name, _ in model.named_modules())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_lowering_merges_what_it_prunes(coupling: Any) -> None:
    model = insert_low_rank(insert_gates(small_bert(), config=config(coupling)))
    moved(model).eval()
    close_some(model)
    expected = model(**batch()).logits
    lowered = lower(model)
    assert torch.allclose(lowered(**batch()).logits, expected, atol=1e-5)
    names = [name for name, _ in lowered.model.named_parameters()]
    assert not any("low_rank" in name for name in names)
    base = sum(p.numel() for p in small_bert().parameters())
    assert sum(p.numel() for p in lowered.model.parameters()) < 0.9 * base
    counted = lowered.report.verdict.parameters
    assert counted.before == base
    assert "low_rank" not in lowered.report.to_markdown()


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_gates_are_folded_once_the_updates_are_merged(coupling: Any) -> None:
    model = insert_low_rank(insert_gates(small_bert(), config=config(coupling)))
    close_some(moved(model))
    expected = model.eval()(**batch()).logits
    with pytest.raises(GateError, match=r"_AdapterHook acts on .*\n.*merge_low_rank"):
        remove_gates(model, fold=True)
    assert torch.equal(model(**batch()).logits, expected)
    remove_gates(merge_low_rank(model), fold=True)
    assert torch.allclose(model(**batch()).logits, expected, atol=1e-5)


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def test_what_is_on_a_wrapped_model_is_merged_and_folded() -> None:
    model = insert_low_rank(insert_gates(small_bert(), config=config("shared")))
    close_some(moved(model))
    expected = model.eval()(**batch()).logits
    wrapper = Wrapper(model)
    remove_gates(merge_low_rank(wrapper), fold=True)
    assert torch.allclose(wrapper.inner(**batch()).logits, expected, atol=1e-5)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_smaller_module_holds_the_updates(coupling: Any) -> None:
    model = insert_low_rank(insert_gates(small_bert(), config=config(coupling)))
    close_some(moved(model))
    expected = model.eval()(**batch()).logits
    small = lower(model, "module").model
    assert torch.allclose(small(**batch()).logits, expected, atol=1e-5)
    assert type(small) is type(small_bert())
    assert dict(small.named_parameters()).keys() == (
        dict(small_bert().named_parameters()).keys()
    )
    assert find_low_rank(model) is not None


def test_training_moves_gates_and_adapters() -> None:
    model = insert_low_rank(insert_gates(small_bert(), config=config("shared")))
    own = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in own]
    optimizer = torch.optim.AdamW(own, 1e-2)
    for step in range(3):
        optimizer.zero_grad()
        model.train()(**bert_batch(step)).loss.backward()
        optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(own, before, strict=True))


def test_inserting_twice_and_merging_nothing_are_refused() -> None:
    model = insert_low_rank(small_bert())
    with pytest.raises(GateError, match="has low-rank adapters already"):
        insert_low_rank(model)
    with pytest.raises(GateError, match="has no low-rank adapters"):
        merge_low_rank(small_bert())


def test_nothing_to_adapt_is_refused_and_nothing_frozen() -> None:
    """nn.MultiheadAttention computes with its weights inside of one forward."""
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    with pytest.raises(GateError, match=r"no module computes .* of kind head"):
        insert_low_rank(model, 2, (torch.randn(2, 5, 16),), kinds=("head",))
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(GateError, match=r"rank=0\): expected at least 1"):
        insert_low_rank(small_bert(), rank=0)


class Autoencoder(nn.Module):
    """Decodes with the transposed weights of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.hidden = nn.Linear(8, 16), nn.Linear(16, 16)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(torch.relu(self.encode(x))))
        decoded = nn.functional.linear(hidden, self.encode.weight.t())
        return torch.as_tensor(self.head(decoded))


def test_a_weight_that_is_also_read_transposed_gets_no_update() -> None:
    torch.manual_seed(0)
    model, x = Autoencoder(), torch.randn(5, 8)
    adapters = find_low_rank(moved(insert_low_rank(model, 2, (x,))))
    assert adapters is not None
    assert [a.matrix.parameter for a in adapters.each()] == ["hidden.weight"]
    expected = model(x)
    assert torch.allclose(merge_low_rank(model)(x), expected, atol=1e-5)


# -- adapters of peft -----------------------------------------------------------------


def peft_model(base: nn.Module, targets: list[str]) -> Any:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules=targets,
        fan_in_fan_out="c_attn" in targets,
    )
    model = peft.get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return model.eval()


PEFT = {
    "bert": (small_bert, ["query", "value", "output.dense"]),
    "gpt2": (gpt2, ["c_attn", "c_proj"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PEFT)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_lora_of_peft_is_gated_and_merged(name: str, coupling: Any) -> None:
    make, targets = PEFT[name]
    model = peft_model(make(), targets)
    plain = insert_gates(copy.deepcopy(make()), config=config(coupling))
    base = insert_gates(model.get_base_model(), config=config(coupling))
    # No gate on the ranks; the same number of units as without adapters.
    assert [g.size for g in gates(model).values()] == [
        g.size for g in gates(plain).values()
    ]
    close_some(model)
    expected = model(**batch()).logits
    lowered = lower(base)
    assert torch.allclose(lowered(**batch()).logits, expected, atol=1e-5)
    names = [n for n, _ in lowered.model.named_parameters()]
    assert not any("lora" in n for n in names)


@pytest.mark.filterwarnings("ignore")
def test_rows_and_columns_gate_the_lora_layer_as_a_whole() -> None:
    model = peft_model(small_bert(), ["intermediate.dense"])
    insert_gates(model.get_base_model(), config=config("none"))
    layer = model.get_base_model().bert.encoder.layer[0].intermediate.dense
    name = "bert.encoder.layer.0.intermediate.dense.base_layer"
    rows, columns = torch.rand(48), torch.rand(32)
    set_factors(model, f"{name}.rows", rows)
    set_factors(model, f"{name}.columns", columns)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(2, 3, 32)
    weight = layer.base_layer.weight + 2.0 * b @ a
    expected = ((x * columns) @ weight.T + layer.base_layer.bias) * rows
    assert torch.allclose(layer(x), expected, atol=1e-5)
