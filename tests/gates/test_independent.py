"""Two gates per matrix, as FineGates has them: counts, formula, objective, lowering."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgcompile import (
    Budget,
    GateConfig,
    gates,
    insert_gates,
    lower,
    penalty,
    remove_gates,
    status,
)
from fgcompile.errors import GateError
from tests.gates.models import bert, bert_batch
from tests.methods.models import MODELS, ids, llama

LAYER = "bert.encoder.layer.0"


def uncoupled(**changes: Any) -> GateConfig:
    options: dict[str, Any] = {"coupling": "none", "noise": 0.0} | changes
    return GateConfig(**options)


def gated(**changes: Any) -> Any:
    return insert_gates(bert(num_hidden_layers=1), config=uncoupled(**changes))


def dense(model: Any) -> nn.Linear:
    layer: nn.Linear = model.bert.encoder.layer[0].intermediate.dense
    return layer


def set_factors(model: Any, name: str, factors: Tensor) -> None:
    """Logits whose eval factors are `factors`."""
    gate: Any = gates(model)[name]
    theta = torch.atanh(factors - 0.5)
    (gate.logits if gate.anchor is None else gate.anchor).data = theta


# -- which, and how many ------------------------------------------------------------


def roberta(large: bool, layers: int, labels: int | None = 2) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = (
        {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
        if large
        else {}
    )
    config = transformers.RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        num_hidden_layers=layers,
        num_labels=labels or 0,
        **sizes,
    )
    names = ("RobertaForSequenceClassification", "RobertaModel")
    with torch.device("meta"):
        return getattr(transformers, names[labels is None])(config)


def count(model: Any) -> int:
    insert_gates(model, config=uncoupled())
    return sum(gate.size for gate in gates(model).values())


@pytest.mark.parametrize("labels", [None, 1, 2, 3])
def test_one_layer_of_roberta_has_a_twelfth_of_the_papers_gates(
    labels: int | None,
) -> None:
    model = roberta(large=False, layers=1, labels=labels)
    assert count(model) == 165_888 // 12
    assert not any("classifier" in n or "pooler" in n for n in gates(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("large", "layers", "expected"), [(False, 12, 165_888), (True, 24, 442_368)]
)
def test_roberta_has_as_many_gates_as_the_papers_say(
    large: bool, layers: int, expected: int
) -> None:
    assert count(roberta(large, layers)) == expected


def test_every_matrix_of_the_blocks_has_a_row_and_a_column_gate() -> None:
    found = {name: gate.size for name, gate in gates(gated()).items()}
    assert found == {
        f"{LAYER}.{name}.{side}": 48
        if (name, side) in (("intermediate.dense", "rows"), ("output.dense", "columns"))
        else 32
        for name in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
        for side in ("rows", "columns")
    }


def test_shared_keys_and_values_of_one_head_are_gated_too() -> None:
    model = insert_gates(llama(1), config=uncoupled())
    assert len(gates(model)) == 2 * 7


# -- what they compute --------------------------------------------------------------


def test_rows_gate_the_bias_and_columns_the_input() -> None:
    model = gated().eval()
    rows, columns = torch.rand(48), torch.rand(32)
    set_factors(model, f"{LAYER}.intermediate.dense.rows", rows)
    set_factors(model, f"{LAYER}.intermediate.dense.columns", columns)
    layer, x = dense(model), torch.randn(2, 3, 32)
    expected = ((x * columns) @ layer.weight.T + layer.bias) * rows
    assert torch.allclose(layer(x), expected, atol=1e-6)
    gates(model)[f"{LAYER}.intermediate.dense.rows"].close([4])
    assert not layer(x)[..., 4].any()


def test_noise_is_one_sample_per_forward_for_each_side() -> None:
    model = insert_gates(
        bert(num_hidden_layers=1), config=GateConfig.paper_finegates_glue()
    ).train()
    model(**bert_batch())
    layer = dense(model)
    x = torch.randn(1, 1, 32).expand(4, 5, 32)
    first = layer(x)
    assert torch.equal(first, first[:1, :1].expand_as(first))
    assert torch.equal(layer(x), first)
    noise = {name: gate.noise.clone() for name, gate in gates(model).items()}
    side = f"{LAYER}.attention.self.query"
    assert not torch.equal(noise[f"{side}.rows"], noise[f"{side}.columns"])
    model(**bert_batch())
    assert all(not torch.equal(g.noise, noise[n]) for n, g in gates(model).items())
    model.eval()
    assert torch.equal(model(**bert_batch()).logits, model(**bert_batch()).logits)


def test_gate_outside_the_clamp_has_no_gradient_in_the_papers_form() -> None:
    config = uncoupled(rate=None, straight_through=False, objective="none")
    model = insert_gates(bert(num_hidden_layers=1), config=config).train()
    gate: Any = gates(model)[f"{LAYER}.output.dense.rows"]
    gate.logits.data[:16] = 1.0  # tanh + 0.5 = 1.26
    gate.logits.data[16:] = 0.1
    model(**bert_batch()).loss.backward()
    assert not gate.logits.grad[:16].any()
    assert gate.logits.grad[16:].all()


def test_term_is_half_of_both_sides_averaged_over_the_matrices() -> None:
    config = GateConfig.paper_finegates_glue()
    model = insert_gates(bert(num_hidden_layers=1), config=config)
    for gate in gates(model).values():
        gate.logits.data = torch.randn(gate.size)
    each = list(gates(model).values())
    terms = []
    for rows, columns in zip(each[::2], each[1::2], strict=True):
        sides = []
        for gate in (rows, columns):
            mu = gate.logits.detach().tanh()
            r = 0.5 - 0.5 * torch.erf((-0.5 - mu) / (0.5 * 2**0.5))
            sides.append((r.mean() - 0.6).abs())
        terms.append(0.5 * (sides[0] + sides[1]))
    expected = 50 * torch.stack(terms).mean()
    assert torch.allclose(penalty(model), expected, rtol=1e-5)


def test_removed_weights_are_counted_for_each_matrix_alone() -> None:
    model = gated()
    closed = {"query.rows": 3, "query.columns": 5, "intermediate.dense.rows": 7}
    for name, gate in gates(model).items():
        for end, number in closed.items():
            if name.endswith(end):
                gate.close(range(number))
    removed = 32 * 32 - 29 * 27 + 7 * 32
    entries = 4 * 32 * 32 + 2 * 32 * 48
    assert status(model)["cost"]["params"] == pytest.approx(1 - removed / entries)


def test_budget_needs_coupled_gates() -> None:
    with pytest.raises(GateError, match="no budget can be counted"):
        GateConfig(coupling="none", budget=Budget(params=0.5))


# -- other kinds of model -------------------------------------------------------------


def test_matrices_that_another_module_reads_are_gated_as_parameters() -> None:
    block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    x = torch.randn(2, 5, 16)
    attention = block.self_attn
    attention.in_proj_bias.data.normal_()
    attention.out_proj.bias.data.normal_()
    insert_gates(block.eval(), (x,), uncoupled())
    rows, columns = torch.rand(16), torch.rand(16)
    set_factors(block, "self_attn.out_proj.rows", rows)
    set_factors(block, "self_attn.out_proj.columns", columns)
    gates(block)["self_attn.in_proj_weight.rows"].close([0])
    plain = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    plain.load_state_dict(attention.state_dict())
    with torch.no_grad():
        plain.in_proj_weight[0] = plain.in_proj_bias[0] = 0.0
        plain.out_proj.weight.mul_(rows[:, None] * columns)
        plain.out_proj.bias.mul_(rows)
    assert torch.allclose(attention(x, x, x)[0], plain(x, x, x)[0], atol=1e-6)


def test_gates_of_a_graph_are_those_of_its_module() -> None:
    model = bert(num_hidden_layers=1).eval()
    batch = {"input_ids": bert_batch()["input_ids"]}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    graph: Any = torch.export.export(model, (), batch, strict=False).module()
    insert_gates(model, config=uncoupled())
    insert_gates(graph, batch, uncoupled())
    assert list(gates(graph)) == list(gates(model))
    for number, name in enumerate(gates(model)):
        for each in (model, graph):
            gates(each)[name].close([number, number + 9])
    assert torch.allclose(graph(**batch).logits, model(**batch).logits, atol=1e-6)


# -- lowering -------------------------------------------------------------------------


def parameters(lowered: Any) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in lowered.model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_lowered_model_is_exact_and_smaller(name: str) -> None:
    model = insert_gates(MODELS[name](), config=uncoupled())
    generator = torch.Generator().manual_seed(1)
    for gate in gates(model).values():
        order = torch.randperm(gate.size, generator=generator)
        set_factors(model, gate.name, 0.5 + 0.5 * torch.rand(gate.size))
        gate.close(order[: gate.size // 3])
    batch = {"input_ids": ids(), "attention_mask": torch.ones_like(ids())}
    expected = model(**batch).logits
    lowered = lower(model)
    assert torch.allclose(lowered(**batch).logits, expected, atol=1e-5)
    own = sum(p.numel() for n, p in model.named_parameters() if "fgcompile" not in n)
    assert sum(p.numel() for p in lowered.model.parameters()) < 0.85 * own
    assert not any("fgcompile" in str(n.target) for n in lowered.model.graph.nodes)


@pytest.mark.parametrize("closed", ["nothing", "everything"])
def test_lowering_is_exact_at_both_ends(closed: str) -> None:
    model = gated()
    for gate in gates(model).values():
        gate.close(range(gate.size) if closed == "everything" else [])
    batch = {"input_ids": ids(), "attention_mask": torch.ones_like(ids())}
    lowered = lower(model)
    got, expected = lowered(**batch).logits, model(**batch).logits
    assert torch.allclose(got, expected, atol=1e-5)
    own = {n: p.numel() for n, p in model.named_parameters() if "fgcompile" not in n}
    matrices = 4 * 32 * 32 + 2 * 32 * 48
    biases = 4 * 32 + 48 + 32
    gone = matrices + biases if closed == "everything" else 0
    assert sum(p.numel() for p in lowered.model.parameters()) == (
        sum(own.values()) - gone
    )


def test_folded_gates_leave_the_plain_model() -> None:
    model = gated().eval()
    for gate in gates(model).values():
        set_factors(model, gate.name, torch.rand(gate.size))
        gate.close([1, 5])
    expected = model(**bert_batch()).logits
    remove_gates(model, fold=True)
    assert torch.allclose(model(**bert_batch()).logits, expected, atol=1e-5)
    assert not dense(model).weight[1].any()
    assert not dense(model).weight[:, 5].any()
    assert dense(model).bias[1] == 0


@pytest.mark.parametrize(
    ("rows", "columns", "left"),
    [(range(10), range(10), 38), (range(10), [], 38), (range(4), range(8, 14), 38)],
)
def test_unit_goes_where_either_side_closed_it(
    rows: Any, columns: Any, left: int
) -> None:
    # A closed row is gelu(0) = 0 to the next matrix; what a closed column does not
    # read need not be computed.
    model = gated()
    gates(model)[f"{LAYER}.intermediate.dense.rows"].close(list(rows))
    gates(model)[f"{LAYER}.output.dense.columns"].close(list(columns))
    shapes = parameters(lower(model))
    assert shapes[f"{LAYER}.intermediate.dense.weight"] == (left, 32)
    assert shapes[f"{LAYER}.output.dense.weight"] == (32, left)


def test_columns_that_read_a_whole_stream_stay_as_zeros() -> None:
    model = gated()
    gates(model)[f"{LAYER}.intermediate.dense.columns"].close([1, 2, 3])
    lowered = lower(model)
    weight = dict(lowered.model.named_parameters())[
        f"{LAYER}.intermediate.dense.weight"
    ]
    assert weight.shape == (48, 32)
    assert not weight[:, 1:4].any()
