"""The kurtosis variant of FineGates' objective."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import GateConfig, gates, insert_gates, penalty
from fgcompile.errors import GateError
from fgcompile.gates.kurtosis import Watched, root_kurtosis
from tests.gates.models import bert, bert_batch


def by_hand(values: list[float]) -> float:
    """`sqrt(mean z^4)` with the unbiased deviation."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    return (sum((v - mean) ** 4 for v in values) / n) ** 0.5 / variance


def watched(weight: Tensor, mean: Tensor) -> tuple[Watched, Any]:
    model: Any = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    model[0].weight.data = weight
    insert_gates(model, (torch.randn(2, 3),), uncoupled())
    found = gates(model)
    pair = Watched(model[0].weight, True, found["0.rows"], found["0.columns"], mean)
    return pair, found


def uncoupled(**changes: Any) -> GateConfig:
    options: dict[str, Any] = {"coupling": "none", "noise": 0.0, "weighting": "equal"}
    return GateConfig(**(options | changes))


WEIGHT = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 4.0]])
MEAN = torch.tensor([1.0, 2.0, 0.5])


def test_kurtosis_of_a_small_matrix_is_that_by_hand() -> None:
    passed = WEIGHT * MEAN
    rows = torch.tensor([by_hand(row) for row in passed.tolist()])
    columns = torch.tensor([by_hand(column) for column in passed.T.tolist()])
    assert torch.allclose(root_kurtosis(passed, 1), rows)
    assert torch.allclose(root_kurtosis(passed, 0), columns)
    assert not root_kurtosis(torch.ones(2, 3), 1).any()


def test_weights_are_a_softmax_over_what_is_open() -> None:
    pair, found = watched(WEIGHT, MEAN)
    passed = WEIGHT * MEAN
    rows, columns = pair.weights()
    assert torch.allclose(rows, torch.softmax(-root_kurtosis(passed, 1) / 100, 0))
    assert torch.allclose(columns, torch.softmax(-root_kurtosis(passed, 0) / 100, 0))
    found["0.columns"].close([1])
    rows, columns = pair.weights()
    active = passed[:, [0, 2]]
    assert torch.allclose(rows, torch.softmax(-root_kurtosis(active, 1) / 100, 0))
    assert columns[1] == 0
    assert float(rows.sum()) == pytest.approx(1.0)
    assert float(columns.sum()) == pytest.approx(1.0)


def test_equal_kurtosis_gives_the_plain_mean() -> None:
    pair, _ = watched(torch.ones(2, 3), MEAN)
    rows, columns = pair.weights()
    assert torch.allclose(rows, torch.full((2,), 1 / 2))
    assert torch.allclose(columns, torch.full((3,), 1 / 3))


def terms(kurtosis: bool) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    config = uncoupled(kurtosis=kurtosis, rate=None)
    model = insert_gates(bert(num_hidden_layers=1), config=config).train()
    for gate in gates(model).values():
        gate.logits.data = 0.3 + torch.randn(gate.size)
    model(**bert_batch())
    return model, penalty(model)


def openness(gate: Any) -> Tensor:
    """`P(tanh(theta) + 0.5 + 0.5 noise > 0)` of the paper, 0 where closed by hand."""
    mean = (torch.tanh(gate.theta.detach()) + 0.5) / 0.5
    return 0.5 + 0.5 * torch.erf(mean / 2**0.5)


def matrices_of(model: Any) -> list[tuple[str, Any]]:
    paths = {id(p): n.removesuffix(".weight") for n, p in model.named_parameters()}
    pairs = model.fgcompile_gates.objective.pairs
    return [(paths[id(pair.weight)], pair) for pair in pairs]


def test_term_weights_the_openness_of_every_side() -> None:
    plain, weighted = terms(False)[1], terms(True)
    model, term = weighted
    layer = model.bert.encoder.layer[0].intermediate.dense
    seen = []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]), prepend=True)
    model(**bert_batch())
    pair = Watched(
        layer.weight,
        True,
        gates(model)["bert.encoder.layer.0.intermediate.dense.rows"],
        gates(model)["bert.encoder.layer.0.intermediate.dense.columns"],
    )
    pair.see(seen[0])
    own = [p for p in model.fgcompile_gates.objective.pairs if p.weight is layer.weight]
    assert torch.allclose(own[0].mean, seen[0].detach().flatten(0, 1).mean(0))
    for ours, theirs in zip(pair.weights(), own[0].weights(), strict=True):
        assert torch.allclose(ours, theirs)
    assert not torch.allclose(term, plain, rtol=1e-3)
    distances = [
        abs(float(w @ openness(gates(model)[f"{name}.{side}"])) - (1 - 0.4))
        for name, each in matrices_of(model)
        for side, w in zip(("rows", "columns"), each.weights(), strict=True)
    ]
    assert len(distances) == len(gates(model)) == 12
    assert term.item() == pytest.approx(5.0 * sum(distances) / 12, rel=1e-4)
    term.backward()
    closed = ~gates(model)["bert.encoder.layer.0.output.dense.rows"].open
    logits: Any = gates(model)["bert.encoder.layer.0.output.dense.rows"].logits
    assert closed.any()
    assert not logits.grad[closed].any()
    assert logits.grad[~closed].any()


def test_copied_model_watches_its_own_inputs() -> None:
    model, _ = terms(True)
    twin = copy.deepcopy(model)
    weights = {id(p) for p in twin.parameters()}
    pairs = twin.fgcompile_gates.objective.pairs
    assert all(id(pair.weight) in weights for pair in pairs)
    before = pairs[-1].mean.clone()
    model(**bert_batch(5))
    assert torch.equal(pairs[-1].mean, before)


def test_kurtosis_needs_single_matrices() -> None:
    with pytest.raises(GateError, match="kurtosis weights the rows and columns"):
        GateConfig(kurtosis=True)
    block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    with pytest.raises(GateError, match="its input cannot be watched"):
        insert_gates(block, (torch.randn(2, 5, 16),), uncoupled(kurtosis=True))
    assert not any("gates" in name for name, _ in block.named_modules())
