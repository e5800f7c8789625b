"""Gates in training loops: the term in the loss, accumulation, resuming, budgets."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgcompile.gates import (
    Budget,
    GateConfig,
    attach,
    container_of,
    gate_parameters,
    gates,
    penalty,
    status,
)
from tests.gates.models import (
    BATCH,
    bert,
    bert_batch,
    bert_specs,
    budgeted,
    mlp,
    mlp_specs,
    quiet,
    site,
    spec,
)


def loss_of(model: nn.Module, batch: dict[str, Tensor], **more: Any) -> Tensor:
    return model(**batch, **more).loss


# -- the term in the loss -----------------------------------------------------------


def test_term_is_added_to_the_loss_in_training_only() -> None:
    model, batch = bert(), bert_batch()
    before = loss_of(model, batch)
    attach(model, bert_specs(), quiet())
    term = penalty(model.eval())
    assert float(term.detach()) > 1
    assert torch.equal(loss_of(model, batch), before)
    model.train()
    assert torch.allclose(loss_of(model, batch), before + term)
    assert torch.allclose(model(**batch, return_dict=False)[0], before + term)
    assert int(container_of(model).penalties) == 2


def test_tuple_without_labels_has_no_loss() -> None:
    class Scalars(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x).sum(), x

    model = Scalars()
    specs = [_moved(mlp_specs()[0], "inner.")]
    x = torch.randn(2, 8)
    before = model(x)[0]
    attach(model, specs, quiet())
    assert torch.equal(model(x)[0], before)


def _moved(spec: Any, prefix: str) -> Any:
    sites = tuple(replace(s, module=prefix + s.module) for s in spec.sites)
    return replace(spec, sites=sites)


def test_loss_without_gradient_is_left_alone() -> None:
    model = attach(bert(), bert_specs(), quiet())
    with torch.no_grad():
        plain = loss_of(model.eval(), bert_batch())
        assert torch.equal(loss_of(model.train(), bert_batch()), plain)


def test_every_gate_gets_a_gradient() -> None:
    model = attach(bert(), bert_specs())
    loss_of(model, bert_batch()).backward()
    assert all(p.grad is not None and p.grad.any() for p in gate_parameters(model))


# -- accumulation -------------------------------------------------------------------


def accumulated_gradients(parts: int, items: int | None) -> list[Tensor]:
    torch.manual_seed(0)
    model = attach(bert(), bert_specs(), quiet())
    batch = bert_batch(batch=4 * BATCH)
    size = 4 * BATCH // parts
    for number in range(parts):
        rows = slice(number * size, (number + 1) * size)
        part = {name: value[rows] for name, value in batch.items()}
        if items is None:
            (loss_of(model, part) / parts).backward()
        else:
            # As a Trainer does for models that take num_items_in_batch: the model
            # divides by all items, and nobody divides by the number of parts.
            out = model(**part, num_items_in_batch=torch.tensor(items))
            task = F.cross_entropy(out.logits, part["labels"])
            mean = F.cross_entropy(out.logits, part["labels"], reduction="sum") / items
            (out.loss - task + mean).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("items", [None, 4 * BATCH])
def test_accumulation_equals_one_large_batch(items: int | None) -> None:
    whole, parts = accumulated_gradients(1, items), accumulated_gradients(4, items)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_shares_of_uneven_parts_sum_to_one_term() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    model = transformers.LlamaForCausalLM(config)
    down = site("model.layers.0.mlp.down_proj", torch.arange(24))
    attach(model, [spec("mlp", "mlp", [down])], quiet())
    ids = torch.randint(0, 20, (4, 6))
    labels = ids.clone()
    labels[0, 2:] = labels[3, :4] = -100
    # Position 0 is never predicted, so a Trainer does not count it.
    items = (labels[:, 1:] != -100).sum()
    terms = []
    for rows in (slice(0, 1), slice(1, 4)):
        batch = {"input_ids": ids[rows], "labels": labels[rows]}
        with_term, plain = (
            loss_of(model.train(mode), batch, num_items_in_batch=items)
            for mode in (True, False)
        )
        terms.append(float((with_term - plain).detach()))
    whole = float(penalty(model).detach())
    assert terms[0] == pytest.approx(whole / 13, rel=1e-4)
    assert sum(terms) == pytest.approx(whole, rel=1e-4)


def test_multipliers_advance_once_per_optimizer_step() -> None:
    states = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = attach(bert(), bert_specs(), budgeted(0.5, noise=0.0))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(5):
            optimizer.zero_grad()
            for _ in range(parts):
                (loss_of(model, bert_batch(step)) / parts).backward()
            optimizer.step()
        states.append(status(model))
    assert states[0]["steps"] == states[1]["steps"] == 5
    assert states[0]["target"] == states[1]["target"]


# -- checkpointing, autocast, compile -----------------------------------------------


def _enable_checkpointing(model: Any, options: dict[str, Any]) -> None:
    # Renamed in transformers 5.2x; the old name warns there.
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)(options)


def checkpointed_gradients(options: dict[str, Any] | None) -> list[Tensor]:
    torch.manual_seed(0)
    model = attach(bert(), bert_specs(), GateConfig(noise=0.3)).train()
    if options is not None:
        _enable_checkpointing(model, options)
    torch.manual_seed(1)
    loss_of(model, bert_batch()).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_reuses_the_sample(reentrant: bool) -> None:
    plain = checkpointed_gradients(None)
    again = checkpointed_gradients({"use_reentrant": reentrant})
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


def test_two_forwards_may_precede_one_backward() -> None:
    model = attach(bert(), bert_specs(), budgeted(0.5))
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(3):
        optimizer.zero_grad()
        both = loss_of(model, bert_batch(step)) + loss_of(model, bert_batch(step + 9))
        both.backward()
        optimizer.step()


def test_autocast_trains_in_bfloat16() -> None:
    model = attach(bert(), bert_specs(), quiet())
    plain = model(**bert_batch()).logits
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**bert_batch())
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert torch.allclose(out.logits.float(), plain, atol=0.05)
    assert all(p.grad.dtype == torch.float32 for p in gate_parameters(model))


def test_bfloat16_model_runs_with_float32_gates() -> None:
    model = attach(bert(), bert_specs()).to(torch.bfloat16)
    out = model(**bert_batch())
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert {p.dtype for p in gate_parameters(model)} == {torch.float32}


def test_exported_model_has_gate_nodes_and_equals_eager() -> None:
    model = attach(bert(), bert_specs()).eval()
    gates(model)["bert.encoder.layer.0.mlp"].close([3, 4])
    batch = bert_batch()
    program = torch.export.export(model, (), batch, strict=False)
    nodes = [n for n in program.graph.nodes if "fgcompile.gate" in str(n.target)]
    assert len(nodes) == 4
    got = program.module()(**batch)
    assert torch.allclose(got.logits, model(**batch).logits, atol=1e-6)
    assert int(container_of(model).forwards) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_model_trains_as_the_eager_one() -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = attach(mlp(), mlp_specs(), budgeted(0.5, steps=5, noise=0.0))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        run = torch.compile(model) if compiled else model
        for step in range(8):
            torch.manual_seed(step)
            loss = run(torch.randn(4, 8)).pow(2).mean() + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        assert status(model)["met"]
        assert status(model)["steps"] == 8
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# -- resuming -----------------------------------------------------------------------


def train(model: nn.Module, optimizer: Any, steps: range, lr: float = 1e-3) -> None:
    for step in steps:
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss_of(model.train(), bert_batch(step)).backward()
        optimizer.step()


def test_resumed_training_is_bit_equal() -> None:
    torch.manual_seed(0)
    model = attach(bert(), bert_specs(), budgeted(0.5, steps=8))
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, range(5))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(5, 12))

    twin = attach(bert(), bert_specs(), budgeted(0.5, steps=8))
    resumed = torch.optim.AdamW(twin.parameters())
    twin.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(twin, resumed, range(5, 12))
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in twin.state_dict().items())


# -- any loop -----------------------------------------------------------------------


def positions(lr: float, weight_decay: float) -> Tensor:
    torch.manual_seed(0)
    model = attach(bert(), bert_specs(), quiet(weight=1.0))
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
    for _ in range(20):
        optimizer.zero_grad()
        penalty(model).backward()
        with torch.no_grad():
            model(**bert_batch())
        optimizer.step()
    return torch.cat([gate.theta.detach() for gate in gates(model).values()])


def test_gates_move_alike_at_any_learning_rate_and_weight_decay() -> None:
    reference = positions(1e-3, 0.0)
    assert (reference < 0.3).all()  # they started at 0.55
    for lr, weight_decay in ((2e-5, 0.01), (1e-2, 0.0), (1e-3, 0.1)):
        assert torch.allclose(positions(lr, weight_decay), reference, atol=0.02)


def test_values_set_by_hand_are_taken_as_they_are() -> None:
    model = attach(mlp(), mlp_specs()).eval()
    (logits,) = gate_parameters(model)
    with torch.no_grad():
        logits.sub_(0.3)
    before = gates(model)["hidden"].value().detach().clone()
    model(torch.randn(2, 8))
    assert before.tolist() == pytest.approx([0.5 + 0.2441] * 16, abs=1e-3)
    assert torch.equal(gates(model)["hidden"].value(), before)


@pytest.mark.parametrize("config", [budgeted(0.5), GateConfig()])
def test_eval_after_the_last_step_is_what_later_evals_see(config: GateConfig) -> None:
    model = attach(bert(), bert_specs(), config)
    train(model, torch.optim.AdamW(model.parameters()), range(25))
    first = model.eval()(**bert_batch()).logits
    status(model)
    assert torch.equal(model(**bert_batch()).logits, first)


# -- budgets ------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)


def digits_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))


@pytest.mark.parametrize("keep", [0.3, 0.7])
@pytest.mark.parametrize("lr", [2e-5, 1e-3])
@pytest.mark.parametrize("ascent", [0.0, 0.1])
@pytest.mark.parametrize("gate", ["finegates", "hard_concrete"])
def test_budget_is_met_within_a_point_on_digits(
    keep: float, lr: float, ascent: float, gate: str
) -> None:
    x, y = digits()
    for seed in range(2):
        torch.manual_seed(seed)
        config = GateConfig(gate=gate, budget=Budget(params=keep, ascent=ascent))
        model = attach(digits_model(), mlp_specs(96), config)
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 200)
        objective: Any = container_of(model).objective
        multipliers = [0.0]
        for _ in range(200):
            rows = torch.randint(0, len(x), (32,))
            loss = F.cross_entropy(model(x[rows]), y[rows]) + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            multipliers.append(float(objective.l1 + objective.l2))
        found = status(model)
        assert abs(found["gap"]["params"]) <= 0.01
        assert found["met"]
        # The Lagrangian pushes on the way there, and nothing pulls once it is met.
        assert (max(multipliers) > 0.01) == (ascent > 0)
        assert multipliers[-1] == 0.0


def test_budget_keeps_the_units_that_matter() -> None:
    # The class depends on 4 of 32 hidden units; the others feed noise.
    torch.manual_seed(0)
    model = mlp(32)
    with torch.no_grad():
        model[2].weight[:, 4:] = 0
        model[2].weight[:, :4] *= 5
    teacher = copy.deepcopy(model)
    attach(model, mlp_specs(32), GateConfig(budget=Budget(params=4 / 32, steps=60)))
    optimizer = torch.optim.AdamW(gate_parameters(model), 1e-3)
    for _ in range(100):
        x = torch.randn(32, 8)
        loss = F.mse_loss(model(x), teacher(x).detach()) + penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gates(model)["hidden"].open.nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_two_limits_hold_together() -> None:
    model = attach(
        bert(), bert_specs(), GateConfig(budget=Budget(params=0.6, macs=0.4, steps=10))
    )
    train(model, torch.optim.AdamW(model.parameters()), range(15))
    found = status(model)
    assert found["cost"]["params"] <= 0.6
    assert 0.39 <= found["cost"]["macs"] <= 0.4


def trainer_run(folder: Path, model: nn.Module, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    rows = [
        {name: value[0] for name, value in bert_batch(seed, 1).items()}
        for seed in range(64)
    ]
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=30,
        learning_rate=2e-5,
        weight_decay=0.01,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    trainer = transformers.Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_unchanged_trainer_meets_the_budget(tmp_path: Path, accumulation: int) -> None:
    for keep in (0.3, 0.6):
        model = attach(bert(), bert_specs(), budgeted(keep, steps=20))
        trainer_run(tmp_path, model, gradient_accumulation_steps=accumulation)
        found = status(model)
        assert found["problems"] == []
        assert found["steps"] == 30
        assert found["forwards"] == found["penalties"] == 30 * accumulation
        assert abs(found["gap"]["params"]) <= 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trainer_evaluates_saves_and_reloads(tmp_path: Path) -> None:
    model = attach(bert(), bert_specs(), budgeted(0.5, steps=20))
    trainer = trainer_run(tmp_path, model)
    logits = model.eval()(**bert_batch()).logits
    trainer.save_model(str(tmp_path / "saved"))
    safetensors = pytest.importorskip("safetensors.torch")
    state = safetensors.load_file(tmp_path / "saved" / "model.safetensors")
    twin = attach(bert(), bert_specs(), budgeted(0.5, steps=20)).eval()
    twin.load_state_dict(state)
    assert torch.equal(twin(**bert_batch()).logits, logits)
