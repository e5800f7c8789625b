"""PST: scores, masks and their gradients, the schedule, baking, and lowering."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fgcompile
from fgcompile.errors import CaptureError, GateError
from fgcompile.gates.matrices import Matrix
from fgcompile.methods import (
    PstConfig,
    bake_pst,
    cubic_sparsity,
    find_pst,
    insert_pst,
    pst_status,
)
from fgcompile.methods.pst_scores import PstMatrix, keep_highest
from tests.gates.models import bert, bert_batch, mlp
from tests.methods.models import gpt2, llama


def scored(shape: tuple[int, int] = (4, 5), rows: int = 0, rank: int = 2) -> PstMatrix:
    layer = nn.Linear(shape[1], shape[0], bias=False)
    if rows == 1:
        layer.weight = nn.Parameter(layer.weight.detach().T.clone())
    matrix = Matrix("weight", rows, shape, "", "weight", None, True, ())
    generator = torch.Generator().manual_seed(1)
    found = PstMatrix(layer, "weight", matrix, rank, (0.5, 0.25, 2.0), generator)
    layer.weight.requires_grad_(False)
    vars(found)["layer"] = layer
    return found


def moved(matrix: PstMatrix) -> PstMatrix:
    """Small matrices as after some training: none is zero."""
    for parameter in matrix.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    return matrix


def train(model: Any, steps: int, lr: float = 1e-2) -> None:
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model(**bert_batch(step)).loss.backward()
        optimizer.step()
    model.eval()


# -- scores and masks ---------------------------------------------------------------


def test_scores_are_those_of_the_paper() -> None:
    m = moved(scored())
    w = m.parameter + 2.0 * m.u @ m.v
    assert torch.allclose(m.effective(), w)
    ones = torch.ones_like(w)
    expected = w.abs() + 0.5 * m.a @ m.b + 0.25 * (m.r * ones + ones * m.c)
    assert torch.allclose(m.scores(m.effective()), expected)


def test_training_starts_from_the_given_weights_scored_by_their_size() -> None:
    m = scored()
    assert torch.equal(m.effective(), m.parameter)
    assert torch.equal(m.scores(m.effective()), m.parameter.abs())


@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.33, 0.5, 0.9, 0.999])
def test_mask_has_exactly_the_asked_number_of_zeros(sparsity: float) -> None:
    scores = torch.randn(7, 9)
    scores[2] = scores[3]  # ties
    mask = keep_highest(scores, sparsity)
    assert int((mask == 0).sum()) == int(sparsity * 63)
    kept, gone = scores[mask == 1], scores[mask == 0]
    assert gone.numel() == 0 or gone.max() <= kept.min()


def grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def masked_gradients(m: PstMatrix, sparsity: float) -> tuple[Tensor, Tensor, Tensor]:
    """G, M and Weff of a forward that is followed by a backward."""
    effective = m.effective()
    mask = keep_highest(m.scores(effective), sparsity)
    weight = mask * effective
    gradient = torch.randn_like(weight)
    (weight * gradient).sum().backward()
    return gradient, mask.detach(), effective.detach()


def test_gradients_are_straight_through_for_all_entries() -> None:
    m = moved(scored())
    g, mask, w = masked_gradients(m, 0.4)
    assert int((mask == 0).sum()) == 8
    scores = g * w  # dL/dS, masked entries as well
    a, b = m.a.detach(), m.b.detach()
    assert torch.allclose(grad(m.a), 0.5 * scores @ b.T, atol=1e-6)
    assert torch.allclose(grad(m.b), 0.5 * a.T @ scores, atol=1e-6)
    assert torch.allclose(grad(m.r), 0.25 * scores.sum(1, keepdim=True), atol=1e-6)
    assert torch.allclose(grad(m.c), 0.25 * scores.sum(0, keepdim=True), atol=1e-6)


def test_gradient_of_the_weights_passes_through_their_scores_too() -> None:
    m = moved(scored())
    g, mask, w = masked_gradients(m, 0.4)
    effective = g * (mask + w.abs())
    assert torch.allclose(grad(m.u), 2.0 * effective @ m.v.detach().T, atol=1e-6)
    assert torch.allclose(grad(m.v), 2.0 * m.u.detach().T @ effective, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
def test_sums_of_scores_and_their_gradients_are_those_of_all_scores(dim: int) -> None:
    m = moved(scored())
    slope = torch.randn(m.matrix.shape[dim])
    expected = m.scores(m.effective()).sum(1 - dim)
    wanted = torch.autograd.grad(expected @ slope, list(m.parameters()))
    sums = m.score_sums(dim)
    assert torch.allclose(sums, expected, atol=1e-6)
    got = torch.autograd.grad(sums @ slope, list(m.parameters()))
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_first_step_moves_neither_u_nor_a() -> None:
    m = scored()
    masked_gradients(m, 0.4)
    assert not grad(m.u).any()
    assert not grad(m.a).any()
    assert grad(m.v).any()
    assert grad(m.b).any()


def test_stored_transposed_a_weight_has_the_same_scores() -> None:
    torch.manual_seed(3)
    plain = scored((4, 5), rows=0)
    torch.manual_seed(3)
    transposed = scored((4, 5), rows=1)
    assert torch.equal(plain.effective(), transposed.effective())
    assert transposed.parameter.shape == (5, 4)
    masks = [keep_highest(m.scores(m.effective()), 0.4) for m in (plain, transposed)]
    assert torch.equal(*masks)


def causal(model: Any, steps: int, **changes: Any) -> Any:
    """`model` with scores, after so many steps as a language model."""
    model = insert_pst(model, PstConfig(steps=steps, sparsity=0.5, **changes))
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, 1e-3)
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("structured", [False, True])
def test_weights_that_are_stored_transposed_are_masked_and_baked(
    structured: bool,
) -> None:
    model = causal(gpt2(), 8, structured=structured)
    ids = torch.arange(10).view(2, 5)
    expected = model(input_ids=ids).logits
    assert pst_status(model)["zeros"] >= 0.45
    bake_pst(model)
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_all_that_is_trained_gets_a_gradient() -> None:
    """Keys and values that all heads share belong to no unit that is masked."""
    model = causal(llama(kv=1), 4, structured=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("zero", [["alpha2"], ["beta"], ["alpha1", "beta"]])
def test_steps_are_counted_whatever_adds_to_the_scores(zero: list[str]) -> None:
    factors: dict[str, Any] = dict.fromkeys(zero, 0.0)
    model = insert_pst(bert(), PstConfig(steps=10, sparsity=0.5, **factors))
    train(model, 3)
    assert pst_status(model)["steps"] == 3


@pytest.mark.parametrize("structured", [False, True])
def test_a_later_cast_leaves_scores_and_schedule_precise(structured: bool) -> None:
    config = PstConfig(steps=10, sparsity=0.5, structured=structured)
    model = insert_pst(bert(), config).bfloat16()
    train(model, 2)
    for _ in range(3):
        model.train()(**bert_batch()).loss.backward()
    assert pst_status(model)["steps"] == 2


def test_weights_under_autocast_are_those_that_are_baked() -> None:
    matrix = moved(scored())
    plain = (matrix.effective(), matrix.scores(matrix.effective()))
    with torch.autocast("cpu", torch.bfloat16):
        low = (matrix.effective(), matrix.scores(matrix.effective()))
    assert torch.equal(plain[0], low[0])
    assert torch.equal(plain[1], low[1])


def test_double_weights_stay_precise() -> None:
    model = insert_pst(bert().double(), PstConfig(steps=10))
    pair: Any = next(iter(find_pst(model).matrices))
    assert torch.equal(pair.effective(), pair.parameter)


# -- the schedule -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (100, 0.0), (400, 0.875), (700, 1.0), (701, 1.0), (5000, 1.0)],
)
def test_schedule_is_cubic_between_a_tenth_and_seven_tenths(
    step: int, expected: float
) -> None:
    assert cubic_sparsity(step, 1000, 0.8) == pytest.approx(0.8 * expected)


def test_schedule_can_start_sparse() -> None:
    assert cubic_sparsity(0, 10, 0.9, 0.3) == 0.3
    assert cubic_sparsity(4, 10, 0.9, 0.3) == pytest.approx(0.9 - 0.6 / 8)


def test_zeros_follow_the_optimizer_steps_exactly() -> None:
    model = insert_pst(bert(), PstConfig(steps=10, sparsity=0.8))
    seen = []
    for _ in range(10):
        train(model, 1)
        model(**bert_batch())
        found = pst_status(model)
        seen.append((found["steps"], found["sparsity"]))
        zeros = total = 0
        container = find_pst(model)
        assert container is not None
        for matrix in container.matrices:
            weight = container.weight(matrix)
            assert int((weight == 0).sum()) == int(found["sparsity"] * weight.numel())
            zeros += int((weight == 0).sum())
            total += weight.numel()
        assert found["zeros"] == zeros / total
    assert seen == [(k, cubic_sparsity(k, 10, 0.8)) for k in range(1, 11)]


def test_micro_batches_are_no_steps() -> None:
    model = insert_pst(bert(), PstConfig(steps=10)).train()
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(own, 0.1)
    for _ in range(3):
        for part in range(4):
            model(**bert_batch(part)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pst_status(model)["steps"] == 3


def test_scores_that_are_set_by_hand_are_no_steps() -> None:
    model = insert_pst(bert(num_hidden_layers=1), PstConfig(steps=10)).eval()
    container = find_pst(model)
    assert container is not None
    for value in (1.0, 2.0):
        model(**bert_batch())
        for matrix in container.matrices:
            matrix.get_parameter("r").data.fill_(value)
    assert pst_status(model)["steps"] == 0


# -- what is trained ----------------------------------------------------------------


def test_only_the_small_matrices_are_trained() -> None:
    model = bert()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    insert_pst(model, PstConfig(steps=10))
    trained = {n.split(".")[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"u", "v", "a", "b", "r", "c"}
    train(model, 3)
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name])


def test_forward_before_training_is_that_of_the_model() -> None:
    model = bert().eval()
    before = model(**bert_batch()).logits
    insert_pst(model, PstConfig(steps=10))
    assert torch.equal(model(**bert_batch()).logits, before)
    assert type(model).__name__ == "BertForSequenceClassification"


@pytest.mark.slow
def test_bert_base_trains_as_many_parameters_as_the_paper_says() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig())
    insert_pst(model, PstConfig(steps=10, rank=8))
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert own == 2_820_096


def test_trained_parameters_of_one_layer_follow_from_its_shapes() -> None:
    model = insert_pst(bert(num_hidden_layers=1), PstConfig(steps=10, rank=3))
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)
    per_dim = 2 * 3 + 1
    assert own == per_dim * (4 * (32 + 32) + 2 * (32 + 48))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    found = []
    for options in (None, {"use_reentrant": reentrant}):
        torch.manual_seed(0)
        model = insert_pst(bert(), PstConfig(steps=4, sparsity=0.5))
        train(model, 3)
        model.train()
        if options is not None:
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)(options)
            model.bert.embeddings.register_forward_hook(_requires_grad)
        model(**bert_batch()).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def _requires_grad(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    # As enable_input_require_grads of transformers does for frozen embeddings.
    return output.requires_grad_()


def test_resumed_training_is_bit_equal() -> None:
    torch.manual_seed(0)
    model = insert_pst(bert(), PstConfig(steps=6, sparsity=0.5))
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, 1e-2)
    states: list[Any] = []
    for step in range(6):
        if step == 3:
            states = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
        one_step(model, optimizer, step)
    twin = insert_pst(bert(), PstConfig(steps=6, sparsity=0.5, seed=1))
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad])
    twin.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    for step in range(3, 6):
        one_step(twin, optimizer, step)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


def one_step(model: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model.train()(**bert_batch(step)).loss.backward()
    optimizer.step()


# -- baking and lowering ------------------------------------------------------------


def test_baked_model_computes_what_the_trained_one_does() -> None:
    model = bert()
    names = list(dict(model.named_modules()))
    insert_pst(model, PstConfig(steps=5, sparsity=0.6))
    train(model, 6)
    expected = model(**bert_batch()).logits
    assert bake_pst(model) is model
    assert torch.equal(model(**bert_batch()).logits, expected)
    assert list(dict(model.named_modules())) == names
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    assert int((weight == 0).sum()) == int(0.6 * weight.numel())


def test_schedule_that_never_stepped_cannot_be_baked() -> None:
    model = insert_pst(bert(), PstConfig(steps=5)).train()
    model(**bert_batch()).loss.backward()
    with pytest.raises(GateError, match="schedule of PST never stepped"):
        bake_pst(model)


def test_training_that_ended_before_anything_is_masked_cannot_be_baked() -> None:
    model = insert_pst(bert(), PstConfig(steps=20))
    train(model, 2)
    with pytest.raises(GateError, match=r"nothing before step 2, .* ended at step 2"):
        bake_pst(model)


def test_early_end_of_the_schedule_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = insert_pst(bert(), PstConfig(steps=10, sparsity=0.5))
    train(model, 4)
    bake_pst(model)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("fgc")] == [
        "PST is baked after 4 of 10 steps, at sparsity 0.438 instead of 0.500"
    ]


def test_unbaked_model_cannot_be_lowered() -> None:
    model = insert_pst(bert(), PstConfig(steps=10))
    with pytest.raises(CaptureError, match="bake_pst"):
        fgcompile.lower(model)


def test_single_masked_weights_save_nothing_when_lowered() -> None:
    model = insert_pst(bert(num_hidden_layers=1), PstConfig(steps=5, sparsity=0.5))
    train(model, 6)
    bake_pst(model)
    before = sum(p.numel() for p in model.parameters())
    lowered = fgcompile.lower(model)
    assert sum(p.numel() for p in lowered.model.parameters()) == before


def test_structured_masks_make_the_lowered_model_smaller() -> None:
    model = bert(num_hidden_layers=1)
    insert_pst(model, PstConfig(steps=5, sparsity=0.5, structured=True))
    train(model, 6)
    expected = model(**bert_batch()).logits
    bake_pst(model)
    assert torch.equal(model(**bert_batch()).logits, expected)
    before = sum(p.numel() for p in model.parameters())
    lowered = fgcompile.lower(model)
    after = {n: tuple(p.shape) for n, p in lowered.model.named_parameters()}
    layer = "bert.encoder.layer.0"
    assert after[f"{layer}.attention.self.query.weight"] == (16, 32)
    assert after[f"{layer}.attention.output.dense.weight"] == (32, 16)
    assert after[f"{layer}.intermediate.dense.weight"] == (24, 32)
    assert after[f"{layer}.output.dense.weight"] == (32, 24)
    # Of each unit of the MLP: a row, its bias, a column. Of each head: four of 8 x 32.
    removed = 24 * (32 + 1 + 32) + 2 * (4 * 8 * 32 + 3 * 8)
    assert sum(p.numel() for p in lowered.model.parameters()) == before - removed
    batch = {"input_ids": bert_batch()["input_ids"]}
    got = lowered(**batch, attention_mask=torch.ones_like(batch["input_ids"]))
    assert torch.allclose(got.logits, expected, atol=1e-5)


def test_structured_unit_goes_by_the_mean_score_of_its_entries() -> None:
    model = mlp()
    config = PstConfig(steps=2, sparsity=0.25, structured=True, kinds=("mlp",))
    insert_pst(model, config, (torch.randn(2, 8),))
    container = find_pst(model)
    assert container is not None
    group: Any = container.groups[0]
    up, down = model[0].weight.detach(), model[2].weight.detach()
    mean = (up.abs().sum(1) + down.abs().sum(0)) / (8 + 3)
    assert torch.allclose(group.scores(), mean)
    container.steps.fill_(2)
    lowest = mean.argsort()[:4]
    masked = container.weight(container.matrices[0])
    assert (masked == 0).all(1).nonzero().flatten().tolist() == sorted(lowest.tolist())


def test_weights_read_by_another_module_are_masked_as_well() -> None:
    block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    x = torch.randn(2, 5, 16)
    insert_pst(block, PstConfig(steps=2, sparsity=0.5), (x,))
    own = [p for p in block.parameters() if p.requires_grad]
    assert len(own) == 4 * 6
    optimizer = torch.optim.SGD(own, 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        block.train()(x).square().sum().backward()
        optimizer.step()
    expected = block.eval()(x)
    bake_pst(block)
    assert torch.allclose(block(x), expected, atol=1e-6)
    weight = block.self_attn.in_proj_weight
    assert int((weight == 0).sum()) == weight.numel() // 2


def test_inserting_twice_is_refused() -> None:
    model = insert_pst(bert(), PstConfig(steps=5))
    with pytest.raises(GateError, match="has PST scores already"):
        insert_pst(model, PstConfig(steps=5))


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1, "sparsity": 1.0}])
def test_senseless_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(GateError, match="expected"):
        PstConfig(**options)
