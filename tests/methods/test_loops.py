"""The methods in loops that people have: Trainer, Accelerate, compiled, processes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fgcompile import GateConfig, insert_gates, param_groups, status
from fgcompile.errors import GateError
from fgcompile.gates import gate_parameters
from fgcompile.methods import (
    DistillationConfig,
    PstConfig,
    S2ftConfig,
    bake_pst,
    distill,
    insert_low_rank,
    insert_pst,
    insert_s2ft,
    merge_low_rank,
    pst_status,
    remove_s2ft,
)
from tests.gates.models import bert, bert_batch, quiet
from tests.gates.test_loops import free_port, trainer

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


# -- compiled, Accelerate, two processes: as a plain loop -----------------------------


def ungated(model: Any) -> Any:
    return insert_gates(model, config=quiet(coupling="none"))


def distilled(model: Any) -> Any:
    teacher = copy.deepcopy(model).eval()
    layers = ["bert.encoder.layer.0"]
    return distill(ungated(model), teacher, DistillationConfig(layers=layers))


REPEATABLE: dict[str, Callable[[Any], Any]] = {
    "gates of one matrix": ungated,
    "low rank": lambda m: insert_low_rank(ungated(m)),
    "s2ft": METHODS["s2ft"],
    "pst": lambda m: insert_pst(m, PstConfig(steps=6, sparsity=0.5)),
    "pst structured": lambda m: insert_pst(
        m, PstConfig(steps=6, sparsity=0.5, structured=True)
    ),
    "distillation": distilled,
}
"""Without noise, and with all of a schedule within the steps of `trained`."""


def made(name: str) -> Any:
    torch.manual_seed(0)
    return REPEATABLE[name](bert(num_hidden_layers=1, initializer_range=0.2)).train()


def trained(name: str, wrap: Callable[..., Any] | None = None) -> dict[str, Tensor]:
    """State after training on all rows, or under DDP on those of one process."""
    model = made(name)
    start = copy.deepcopy(model.state_dict())
    learned = [n for n, p in model.named_parameters() if p.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.SGD(parameters, 0.1)
    run, backward = model, Tensor.backward
    if wrap is not None:
        run, optimizer, backward = wrap(model, optimizer)
    for step in range(6):
        batch = bert_batch(step, 8)
        if dist.is_initialized():
            half = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
            batch = {name: value[half] for name, value in batch.items()}
        optimizer.zero_grad()
        backward(run(**batch).loss)
        optimizer.step()
    state: dict[str, Tensor] = model.state_dict()
    # Far more than the tolerance of a comparison.
    assert max(float((state[n] - start[n]).abs().max()) for n in learned) > 0.01
    return state


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)


def accelerated(model: Any, optimizer: Any) -> tuple[Any, Any, Any]:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    return (*accelerator.prepare(model, optimizer), accelerator.backward)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REPEATABLE)
def test_accelerate_trains_as_a_plain_loop(name: str) -> None:
    assert_near(trained(name, accelerated), trained(name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REPEATABLE)
def test_compiled_step_is_the_eager_one(name: str) -> None:
    """A second step too, as the first finds every count at 0."""
    grads: list[dict[str, Tensor]] = []
    for compiled in (False, True):
        model = made(name)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        for step in range(2):
            model.zero_grad()
            loss = run(**bert_batch(step)).loss
            loss.backward()
        named = [(n, p.grad) for n, p in model.named_parameters()]
        grads.append({n: g for n, g in named if g is not None} | {"loss": loss})
    assert len(grads[0]) > 1
    assert_near(grads[1], grads[0])


def as_ddp(model: Any, optimizer: Any) -> tuple[Any, Any, Any]:
    return DistributedDataParallel(model), optimizer, Tensor.backward


def refusals() -> list[str]:
    """What is said where FSDP2 has only parts of the weights here."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    said = []
    ends = {"low rank": merge_low_rank, "s2ft": remove_s2ft, "pst": bake_pst}
    for name, end in ends.items():
        model: Any = fully_shard(made(name), mesh=init_device_mesh("cpu", (2,)))
        with pytest.raises(GateError) as error:
            end(model)
        said.append(str(error.value).split(",")[0].split(" ", 1)[1])
    return said


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        for name in REPEATABLE:
            torch.save(trained(name, as_ddp), f"{folder}/{name} {rank}.pt")
        torch.save(refusals(), f"{folder}/refusals {rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what two processes trained; starting them takes longest."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("processes")
    context: Any = mp.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=worker, args=(rank, port, str(folder)))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REPEATABLE)
def test_two_processes_train_as_one(of_processes: Path, name: str) -> None:
    first, second = (torch.load(of_processes / f"{name} {rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[key], value) for key, value in second.items())
    assert_near(first, trained(name))


@pytest.mark.slow
def test_sharded_weights_are_left_alone(of_processes: Path) -> None:
    for rank in (0, 1):
        said = torch.load(of_processes / f"refusals {rank}.pt")
        assert said == 3 * ["is sharded"]
