"""The methods in a Trainer: what is trained, and checkpoints that continue."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgcompile import GateConfig, insert_gates, param_groups, status
from fgcompile.gates import gate_parameters
from fgcompile.methods import (
    PstConfig,
    S2ftConfig,
    bake_pst,
    insert_low_rank,
    insert_pst,
    insert_s2ft,
    pst_status,
    remove_s2ft,
)
from tests.gates.models import bert, bert_batch
from tests.gates.test_loops import trainer

METHODS: dict[str, Callable[[Any], Any]] = {
    "pst": lambda m: insert_pst(m, PstConfig(steps=12, sparsity=0.5)),
    "pst structured": lambda m: insert_pst(
        m, PstConfig(steps=12, sparsity=0.5, structured=True)
    ),
    "s2ft": lambda m: insert_s2ft(m, S2ftConfig(heads=0.5, channels=0.25, rows=True)),
    "gates": lambda m: insert_gates(m, config=GateConfig.paper_finegates_glue()),
    "low rank": lambda m: insert_low_rank(
        insert_gates(m, config=GateConfig(coupling="none"))
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", METHODS)
def test_resumed_trainer_continues_bit_by_bit(tmp_path: Path, name: str) -> None:
    base = bert(num_hidden_layers=1)
    torch.manual_seed(0)
    whole = METHODS[name](copy.deepcopy(base))
    start = copy.deepcopy(whole.state_dict())
    trained = [n for n, p in whole.named_parameters() if p.requires_grad]
    trainer(tmp_path, whole).train()
    moved = whole.state_dict()
    assert all(not torch.equal(moved[n], start[n]) for n in trained)

    twin = METHODS[name](copy.deepcopy(base))
    twin.load_state_dict(start)
    checkpoint = str(tmp_path / "checkpoint-6")
    trainer(tmp_path / "b", twin).train(resume_from_checkpoint=checkpoint)
    for key, value in twin.state_dict().items():
        assert torch.equal(value, moved[key]), key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trainer_keeps_decay_and_rate_away_from_published_gates(tmp_path: Path) -> None:
    """By itself it decays logits, at its own rate; groups of ours it takes as given."""
    config = GateConfig.paper_finegates_posttrain()
    base = bert(num_hidden_layers=1)
    options = {"lr_scheduler_type": "constant", "weight_decay": 0.5}

    def made(folder: Path, grouped: bool = True) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = insert_gates(copy.deepcopy(base), config=config)
        groups = param_groups(model, lr=1e-3, weight_decay=0.5)
        optimizer = torch.optim.AdamW(groups) if grouped else None
        return model, trainer(folder, model, optimizer, **options)

    def settings(run: Any, model: Any) -> set[tuple[float, float]]:
        own = {id(parameter) for parameter in gate_parameters(model)}
        return {
            (group["lr"], group["weight_decay"])
            for group in run.optimizer.param_groups
            if own & {id(parameter) for parameter in group["params"]}
        }

    whole, run = made(tmp_path)
    run.train()
    assert settings(run, whole) == {(1e-2, 0.0)}
    twin, run = made(tmp_path / "b")
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert settings(run, twin) == {(1e-2, 0.0)}
    for key, value in twin.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key]), key
    plain, run = made(tmp_path / "c", grouped=False)
    run.train()
    assert settings(run, plain) == {(1e-3, 0.5)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulation", [1, 3])
def test_schedule_counts_optimizer_steps_of_a_trainer(
    tmp_path: Path, accumulation: int
) -> None:
    model = METHODS["pst"](bert(num_hidden_layers=1))
    options = {"gradient_accumulation_steps": accumulation, "save_strategy": "no"}
    trainer(tmp_path, model, **options).train()
    found = pst_status(model)
    # The first step of a warm-up has learning rate 0, but there is none here.
    assert found["steps"] == 12
    assert found["zeros"] == 0.5
    expected = model.eval()(**bert_batch()).logits
    bake_pst(model)
    assert torch.equal(model(**bert_batch()).logits, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trained_slices_end_up_in_a_plain_model(tmp_path: Path) -> None:
    model = METHODS["s2ft"](bert(num_hidden_layers=1))
    trainer(tmp_path, model, save_strategy="no").train()
    expected = model.eval()(**bert_batch()).logits
    remove_s2ft(model)
    assert torch.allclose(model(**bert_batch()).logits, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_published_gates_train_in_a_trainer(tmp_path: Path) -> None:
    model = METHODS["gates"](bert(num_hidden_layers=1))
    trainer(tmp_path, model, save_strategy="no").train()
    found = status(model)
    assert found["problems"] == []
    assert found["steps"] == 12
