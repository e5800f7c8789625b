"""Reordering coupled units: outputs stay for whole heads and channels only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import analyze
from fgcompile.errors import GateError
from fgcompile.methods import Permutation, permute_units
from fgcompile.methods.co_permutation import apply, places_by_unit, undo
from tests.methods.models import MODELS, ids, llama


def reversed_orders(analysis: Any, kinds: tuple[str, ...]) -> dict[str, Tensor]:
    groups = [g for g in analysis.groups if g.kind in kinds and not g.reasons]
    return {g.name: torch.arange(g.size).flip(0) for g in groups}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_stay_when_heads_and_channels_move(name: str) -> None:
    model = MODELS[name]()
    before = model(ids()).logits
    state = {n: p.detach().clone() for n, p in model.named_parameters()}
    analysis = analyze(model)
    orders = reversed_orders(analysis, ("mlp", "head"))
    assert len(orders) >= 2
    done = permute_units(model, analysis, orders)
    assert torch.allclose(model(ids()).logits, before, atol=1e-5)
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, state[n])]
    assert len(moved) >= (3 if "MQA" in name else 4)
    undo(model, done)
    for n, p in model.named_parameters():
        assert torch.equal(p, state[n])


def test_value_dims_inside_heads_may_move() -> None:
    model = llama(2, attention_bias=True)
    analysis = analyze(model)
    orders = reversed_orders(analysis, ("vo",))
    # Reversed as a whole would cross heads; inside each head it is legal.
    size = next(g.size for g in analysis.groups if g.kind == "vo")
    inside = torch.arange(size).view(-1, 8).flip(1).flatten()
    before = model(ids()).logits
    permute_units(model, analysis, dict.fromkeys(orders, inside))
    assert torch.allclose(model(ids()).logits, before, atol=1e-5)


def test_dims_inside_rotary_heads_may_not_move() -> None:
    model = llama(2)
    before = model(ids()).logits
    inner = torch.arange(8).flip(0)
    queries = torch.cat([8 * head + inner for head in range(4)])
    layer = "model.layers.0.self_attn"
    apply(
        model,
        [
            Permutation(f"{layer}.q_proj.weight", 0, queries),
            Permutation(f"{layer}.k_proj.weight", 0, queries[:16]),
        ],
    )
    # Scores are sums over the dims, so without frequencies per dim this would be legal.
    assert not torch.allclose(model(ids()).logits, before, atol=1e-3)


def test_query_heads_may_not_move_without_their_key_head() -> None:
    model = llama(2)
    before = model(ids()).logits
    heads = torch.tensor([2, 1, 0, 3])
    rows = (8 * heads[:, None] + torch.arange(8)).flatten()
    layer = "model.layers.0.self_attn"
    apply(
        model,
        [
            Permutation(f"{layer}.q_proj.weight", 0, rows),
            Permutation(f"{layer}.o_proj.weight", 1, rows),
        ],
    )
    assert not torch.allclose(model(ids()).logits, before, atol=1e-3)


class Slopes(nn.Module):
    """Channels that the code tells apart by their place."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x) * torch.arange(1.0, 7.0)
        return x + self.down(hidden)


def test_order_that_the_code_depends_on_is_refused() -> None:
    model = Slopes()
    analysis = analyze(model, (torch.randn(3, 4),))
    state = {n: p.detach().clone() for n, p in model.named_parameters()}
    orders = reversed_orders(analysis, ("mlp",))
    with pytest.raises(GateError, match=r"cannot permute mlp: the outputs .* change"):
        permute_units(model, analysis, orders)
    for n, p in model.named_parameters():
        assert torch.equal(p, state[n])


class Masked(nn.Module):
    """One output is masked, and one is not defined."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.down(self.up(x))
        first, last = torch.arange(4) == 0, torch.arange(4) == 3
        return y.masked_fill(first, -torch.inf).masked_fill(last, torch.nan)


def test_outputs_without_a_finite_value_may_stay_so() -> None:
    model, x = Masked(), torch.randn(3, 4)
    before = model(x)
    analysis = analyze(model, (x,))
    orders = reversed_orders(analysis, ("mlp",))
    assert orders
    permute_units(model, analysis, orders)
    torch.testing.assert_close(model(x), before, equal_nan=True)


@pytest.mark.parametrize("order", [[0, 1], [0] * 48, list(range(1, 49))])
def test_order_must_have_each_unit_once(order: list[int]) -> None:
    model = llama()
    analysis = analyze(model)
    with pytest.raises(GateError, match=r"expected each of its 48 units once"):
        permute_units(model, analysis, {"model.layers.0.mlp": torch.tensor(order)})


def test_places_keep_their_order_within_a_unit() -> None:
    index = torch.tensor([1, 0, -1, 1, 0])
    places = places_by_unit(index, 2)
    assert places is not None
    assert places.tolist() == [[1, 4], [0, 3]]
    assert places_by_unit(torch.tensor([0, 0, 1]), 2) is None
