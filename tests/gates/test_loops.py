"""Loops that people have: Trainer with checkpoints, Accelerate, two processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fgcompile.gates import (
    GateConfig,
    attach,
    container_of,
    gate_callback,
    gate_numbers,
    gates,
    param_groups,
    status,
)
from tests.gates.models import bert, bert_batch, bert_specs, budgeted, mlp, mlp_specs

# -- checkpoints of a Trainer ---------------------------------------------------------


def rows() -> list[dict[str, Tensor]]:
    batches = [bert_batch(seed, 1) for seed in range(48)]
    return [{name: value[0] for name, value in b.items()} for b in batches]


def trainer(
    folder: Path, model: nn.Module, optimizer: Any = None, **options: Any
) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "save_steps": 6,
        "seed": 3,
    }
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **(chosen | options),
    )
    return transformers.Trainer(
        model=model, args=args, train_dataset=rows(), optimizers=(optimizer, None)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("gate", ["finegates", "hard_concrete"])
def test_resumed_trainer_continues_bit_by_bit(
    tmp_path: Path, accumulation: int, gate: str
) -> None:
    options = {"gradient_accumulation_steps": accumulation}
    config = budgeted(0.5, steps=8, gate=gate)
    torch.manual_seed(0)
    whole = attach(bert(), bert_specs(), config)
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    trainer(tmp_path, whole, **options).train()

    twin = attach(bert(), bert_specs(), config)
    twin.load_state_dict(start)
    checkpoint = str(tmp_path / "checkpoint-6")
    trainer(tmp_path / "b", twin, **options).train(resume_from_checkpoint=checkpoint)
    state = whole.state_dict()
    for name, value in twin.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert status(twin)["steps"] == 12
    assert status(twin)["met"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trainer_decays_no_gate(tmp_path: Path) -> None:
    """Whatever decay the Trainer gives logits, a paced gate does not feel it."""
    found = []
    for decay in (0.0, 0.3):
        torch.manual_seed(0)
        model = attach(bert(), bert_specs(), GateConfig(noise=0.0))
        for parameter in model.bert.parameters():
            parameter.requires_grad_(False)
        trainer(tmp_path, model, weight_decay=decay, save_strategy="no").train()
        found.append(torch.cat([g.theta.detach() for g in gates(model).values()]))
    assert torch.allclose(found[0], found[1], atol=0.02)


@pytest.mark.parametrize(
    ("rate", "grouped", "warns"),
    [(None, False, True), (None, True, False), ("auto", False, False)],
)
def test_callback_warns_where_decay_would_move_gates(
    rate: Any, grouped: bool, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("transformers")
    model = attach(mlp(), mlp_specs(), GateConfig(rate=rate))
    parameters: Any = param_groups(model, 1e-3, 0.1) if grouped else model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    gate_callback().on_train_begin(None, None, None, model=model, optimizer=optimizer)
    told = [r.getMessage() for r in caplog.records if r.name == "fgcompile"]
    assert [t[:36] for t in told] == ["weight decay 0.1 moves the gates: ha"] * warns


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_callback_shows_the_budget_being_met(tmp_path: Path) -> None:
    model = attach(bert(), bert_specs(), budgeted(0.5, steps=8))
    run = trainer(tmp_path, model, logging_steps=1, save_strategy="no")
    run.add_callback(gate_callback())
    run.train()
    history = [entry for entry in run.state.log_history if "loss" in entry]
    kept = [entry["gates/params"] for entry in history]
    assert len(kept) == 12
    assert kept[0] > 0.9
    assert kept == sorted(kept, reverse=True)
    assert history[-1]["gates/gap"] <= 0.01
    assert history[-1]["gates/open"] < 1
    assert history[-1]["gates/params"] == status(model)["cost"]["params"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_accelerate_trains_as_a_plain_loop() -> None:
    accelerate = pytest.importorskip("accelerate")
    states = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        model: Any = attach(bert(), bert_specs(), budgeted(0.5, steps=4))
        optimizer: Any = torch.optim.AdamW(model.parameters(), 1e-3)
        accelerator = accelerate.Accelerator(cpu=True)
        if accelerated:
            model, optimizer = accelerator.prepare(model, optimizer)
        for step in range(6):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = model.train()(**bert_batch(step)).loss
            accelerator.backward(loss) if accelerated else loss.backward()
            optimizer.step()
        states.append(container_of(model).state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_numbers_are_those_of_the_status() -> None:
    assert gate_numbers(mlp()) == {}
    model = attach(mlp(), mlp_specs(), budgeted(0.5))
    gates(model)["hidden"].close(range(4))
    assert gate_numbers(model) == {
        "gates/open": 0.75,
        "gates/params": 0.75,
        "gates/macs": 0.75,
        "gates/gap": 0.25,
    }


# -- two processes --------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def trained_gates(wrap: str | None, steps: int = 8) -> dict[str, Tensor]:
    """State of the gates after training on all rows, or on those of one process."""
    torch.manual_seed(0)
    model: Any = attach(bert(), bert_specs(), budgeted(0.5, steps=5, noise=0.0))
    run = WRAPPED[wrap](model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(steps):
        batch = bert_batch(step, 8)
        if wrap is not None:
            half = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
            batch = {name: value[half] for name, value in batch.items()}
        optimizer.zero_grad()
        run(**batch).loss.backward()
        optimizer.step()
        if dist.is_initialized() and dist.get_rank() == step and wrap == "ddp":
            status(model)  # asking on one process alone disturbs nothing
    assert status(model)["met"]
    if wrap == "fsdp2":
        model = plain_twin(model)
    return {k: v.clone() for k, v in container_of(model).state_dict().items()}


def plain_twin(model: nn.Module) -> nn.Module:
    """A model of one process with the whole state of a sharded one."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
    )

    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    twin = attach(bert(), bert_specs(), budgeted(0.5, steps=5, noise=0.0))
    twin.load_state_dict(whole)
    assert all(map(torch.equal, opened(twin), opened(model)))
    return twin


def opened(model: nn.Module) -> list[Tensor]:
    return [gate.open for gate in gates(model).values()]


def sharded(model: nn.Module) -> nn.Module:
    """`model` under FSDP2, its layers apart."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in model.get_submodule("bert.encoder.layer").children():
        fully_shard(layer, mesh=mesh)
    sharded: Any = fully_shard(model, mesh=mesh)
    return sharded


WRAPPED: dict[str | None, Any] = {
    None: lambda model: model,
    "ddp": DistributedDataParallel,
    "fsdp2": sharded,
}


def worker(rank: int, port: int, folder: str, wrap: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.save(trained_gates(wrap), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(tmp_path: Path, wrap: str) -> None:
    """Importance too is that of all rows, so all processes close the same units."""
    pytest.importorskip("transformers")
    context: Any = mp.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=worker, args=(rank, port, str(tmp_path), wrap))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = trained_gates(None)
    assert any(name.endswith("importance") for name in alone)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        if value.is_floating_point():
            assert torch.allclose(first[name], value, rtol=1e-3, atol=1e-7), name
        else:
            assert torch.equal(first[name], value), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_autocast_training_stays_near_the_eager_one() -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = attach(mlp(), mlp_specs(), GateConfig(noise=0.0))
        run = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(4):
            torch.manual_seed(step)
            with torch.autocast("cpu", torch.bfloat16):
                loss = run(torch.randn(4, 8)).float().pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
