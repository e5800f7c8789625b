"""Gates and S2FT on one model: gates are reordered with the weights, and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import (
    Budget,
    GateConfig,
    analyze,
    gates,
    insert_gates,
    lower,
    remove_gates,
)
from fgcompile.errors import GateError
from fgcompile.gates import GateSite, GateSpec, attach, container_of, penalty
from fgcompile.methods import (
    S2ftConfig,
    extract_adapter,
    find_s2ft,
    insert_s2ft,
    permute_units,
    remove_s2ft,
)
from tests.gates.models import bert_batch
from tests.methods.models import MODELS, ids, llama

# The selected heads are not the first ones.
TASK = S2ftConfig(heads=0.5, channels=0.25, rows=True, seed=1)
SOME = ("MHA with biases (BERT)", "MHA fused, transposed (GPT-2)", "MQA, RoPE (Llama)")
CONFIGS = {
    "shared": GateConfig(noise=0.0),
    "inside heads": GateConfig(noise=0.0, kinds=("mlp", "vo", "qk")),
    "none": GateConfig(noise=0.0, coupling="none"),
    "plain": GateConfig(gate="plain"),
}


def unequal(model: Any, seed: int = 0) -> Any:
    """Every gate has units that are closed, half open and open."""
    generator = torch.Generator().manual_seed(seed)
    for gate in gates(model).values():
        held = gate.logits if gate.anchor is None else gate.anchor
        with torch.no_grad():
            held.copy_(torch.randn(gate.size, generator=generator))
        gate.seen.copy_(gate.logits.detach())
        gate.close(torch.randperm(gate.size, generator=generator)[: gate.size // 4])
    return model


def trained(model: Any) -> Any:
    container = find_s2ft(model)
    assert container is not None
    generator = torch.Generator().manual_seed(3)
    for block in container.each():
        block.block.data = 0.1 * torch.randn(block.block.shape, generator=generator)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(ids()).logits
    return found


def state(model: Any) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in container_of(model).state_dict().items()}


@pytest.mark.parametrize(
    ("name", "config"),
    [*((name, "shared") for name in MODELS), *((SOME[1], c) for c in CONFIGS)],
)
def test_unequal_gates_follow_the_units_and_come_back(name: str, config: str) -> None:
    model = unequal(insert_gates(MODELS[name](), config=CONFIGS[config]))
    before, held = logits(model), state(model)
    insert_s2ft(model, TASK)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    moved = state(model)
    assert any(not torch.equal(moved[n], held[n]) for n in held)
    remove_s2ft(model)
    assert torch.equal(logits(model), before)
    after = state(model)
    assert all(torch.equal(after[n], held[n]) for n in held)


@pytest.mark.parametrize("first", ["gates", "S2FT"])
@pytest.mark.parametrize("config", ["inside heads", "none"])
@pytest.mark.parametrize("name", SOME)
def test_what_was_closed_in_between_stays_closed(
    name: str, config: str, first: str
) -> None:
    model = MODELS[name]()
    if first == "gates":
        insert_gates(model, config=CONFIGS[config])
        insert_s2ft(model, TASK)
    else:
        insert_s2ft(model, TASK)
        insert_gates(model, config=CONFIGS[config])
    trained(unequal(model))
    before = logits(model)
    remove_s2ft(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def test_gates_are_the_same_with_and_without_blocks() -> None:
    plain = MODELS["MHA with biases (BERT)"]()
    with_blocks = trained(insert_s2ft(copy.deepcopy(plain), TASK))
    names = [(g.name, g.size) for g in analyze(plain).groups]
    assert [(g.name, g.size) for g in analyze(with_blocks).groups] == names
    before = logits(with_blocks)
    insert_gates(with_blocks, config=GateConfig(gate="plain"))
    assert list(gates(with_blocks)) == list(gates(insert_gates(plain)))
    assert torch.equal(logits(with_blocks), before)


@pytest.mark.parametrize("first", ["gates", "S2FT"])
def test_lowering_keeps_updates_and_closed_units(first: str) -> None:
    model = MODELS["MHA with biases (BERT)"]()
    if first == "gates":
        insert_s2ft(insert_gates(model), TASK)
    else:
        insert_gates(insert_s2ft(model, TASK))
    trained(unequal(model)).eval()
    expected = logits(model)
    inputs = {k: v for k, v in bert_batch().items() if k != "labels"}
    inputs["input_ids"] = ids()
    inputs["attention_mask"] = torch.ones_like(ids())
    lowered = lower(model, "fx")
    got = lowered(**inputs)["logits"]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", ["shared", "none"])
def test_gates_are_folded_once_blocks_are_fused(config: str) -> None:
    model = insert_gates(MODELS[SOME[0]](), config=CONFIGS[config])
    trained(insert_s2ft(unequal(model), TASK))
    expected = logits(model)
    with pytest.raises(GateError, match=r"BlockHook acts on .*\n.*remove_s2ft"):
        remove_gates(model, fold=True)
    assert torch.equal(logits(model), expected)
    if config == "shared":  # the class takes one width for queries and values
        small: Any = lower(model, "module").model
        assert torch.allclose(logits(small), expected, atol=1e-5)
        assert not hasattr(small, "fgcompile_s2ft")
    remove_gates(remove_s2ft(model), fold=True)
    assert torch.allclose(logits(model), expected, atol=1e-5)


def test_checkpoint_with_gates_brings_its_order_along() -> None:
    base = MODELS["MHA with biases (BERT)"]()
    model = insert_s2ft(unequal(insert_gates(copy.deepcopy(base))), TASK)
    expected, twin = logits(model), insert_gates(copy.deepcopy(base))
    insert_s2ft(twin, S2ftConfig(0.5, 0.25, rows=True, seed=7))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(logits(twin), expected)
    remove_s2ft(twin)
    torch.testing.assert_close(logits(twin), expected, rtol=1e-5, atol=1e-5)


def test_budget_judges_the_same_units_after_removal() -> None:
    model = insert_gates(
        MODELS["MHA with biases (BERT)"](),
        config=GateConfig(noise=0.0, budget=Budget(params=0.6, steps=4)),
    )
    insert_s2ft(model, TASK)
    optimizer = torch.optim.Adam([g.logits for g in gates(model).values()], 1e-2)
    for gate in gates(model).values():
        gate.logits.requires_grad_(True)
    model.train()
    for step in range(6):
        optimizer.zero_grad()
        model(**bert_batch(step)).loss.backward()
        optimizer.step()
    before = logits(model)
    assert any(not g.open.all() for g in gates(model).values())
    remove_s2ft(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def test_kurtosis_weighs_the_same_units_after_removal() -> None:
    config = GateConfig.paper_finegates_glue()
    model = insert_gates(MODELS["MHA with biases (BERT)"](), config=config)
    insert_s2ft(unequal(model), TASK)
    model.train()(**bert_batch())
    before = penalty(model)
    remove_s2ft(model)
    torch.testing.assert_close(penalty(model), before)


def mlp(name: str, where: Any = "input", module: str = "2") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 4))
    sites = (GateSite(module, where, "0", -1, torch.arange(8)),)
    spec = GateSpec(name, "mlp", 8, sites, torch.ones(8), torch.ones(8))
    return attach(model.eval(), [spec], GateConfig(gate="plain"))


X = (torch.linspace(-1, 1, 20).view(5, 4),)
CHANNELS = S2ftConfig(channels=0.25, seed=1)


@pytest.mark.parametrize("site", [("input", "2"), ("output", "0")])
def test_gates_with_names_of_their_own_are_found_by_their_sites(site: Any) -> None:
    model = mlp("mine", *site)
    gates(model)["mine"].close([0, 1, 2])
    before = model(*X)
    insert_s2ft(model, CHANNELS, X)
    torch.testing.assert_close(model(*X), before)
    gates(model)["mine"].close([3])
    before = model(*X)
    remove_s2ft(model)
    torch.testing.assert_close(model(*X), before)


def test_gates_whose_units_are_not_found_are_refused() -> None:
    model = mlp("mine", "output", "1")
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(GateError, match="cannot tell which units gate mine acts on"):
        insert_s2ft(model, CHANNELS, X)
    assert find_s2ft(model) is None
    for parameter, old in zip(model.parameters(), weights, strict=True):
        assert torch.equal(parameter, old)


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def test_wrapped_model_is_served_from_outside() -> None:
    model = insert_s2ft(unequal(insert_gates(llama())), TASK)
    before = logits(trained(model))
    wrapper = Wrapper(model)
    assert (
        extract_adapter(wrapper).entries.keys() == extract_adapter(model).entries.keys()
    )
    assert remove_s2ft(wrapper) is wrapper
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def test_gates_of_another_module_are_refused() -> None:
    wrapper = Wrapper(insert_gates(mlp_plain(), X))
    with pytest.raises(GateError, match="gates that another module holds"):
        insert_s2ft(wrapper, CHANNELS, X)
    wrapper = Wrapper(insert_s2ft(mlp_plain(), CHANNELS, X))
    insert_gates(wrapper, X)
    with pytest.raises(GateError, match="gates that another module holds"):
        remove_s2ft(wrapper)
    assert find_s2ft(wrapper) is not None


def mlp_plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 4))


def test_permuting_takes_gates_along_and_the_inverse_brings_them_back() -> None:
    model = unequal(insert_gates(mlp_plain().eval(), X))
    before, held = model(*X), state(model)
    analysis = analyze(model, X)
    order = torch.randperm(8)
    permute_units(model, analysis, {"mlp": order})
    torch.testing.assert_close(model(*X), before)
    closed = gates(model)["mlp"].closed
    assert torch.equal(closed, held["gates.mlp.closed"][order])
    permute_units(model, analysis, {"mlp": order.argsort()})
    assert all(torch.equal(t, held[n]) for n, t in state(model).items())
