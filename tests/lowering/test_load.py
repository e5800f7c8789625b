"""Many models in one process, two threads, gates put on and taken off again."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import threading
import warnings
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.hooks import RemovableHandle

from benchmarks.load import Growth, faults, measure
from fgcompile import GateConfig, analyze, gates, insert_gates, lower, remove_gates
from fgcompile.capture import capture
from fgcompile.program import Program
from tests.gates.models import bert, bert_batch

X = torch.linspace(-1, 1, 24).view(2, 3, 4)


def mlp(hidden: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3)).eval()


def lower_gated(hidden: int, target: Any = "fx") -> tuple[nn.Module, Any]:
    model = insert_gates(mlp(hidden), (X,), GateConfig(kinds=("mlp",)))
    gates(model)["mlp"].close([0, hidden - 1])
    return model, lower(model, target)


def test_nothing_of_a_model_is_kept() -> None:
    lower_gated(8)  # what is cached for good is there now
    gc.collect()
    kept = sum(type(each) is Program for each in gc.get_objects())
    seen = []
    for hidden in (6, 7, 9):
        model, lowered = lower_gated(hidden, "module")
        seen += [weakref.ref(each) for each in (model, lowered.model, lowered.program)]
        del model, lowered
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)
    assert sum(type(each) is Program for each in gc.get_objects()) == kept


def test_sizes_of_earlier_traces_are_let_go_unless_in_use() -> None:
    first = capture(mlp(), (X,))
    for hidden in (8, 9, 10):
        capture(mlp(hidden), (X,))
        seen = live()["ShapeEnv"]
    capture(mlp(11), (X,))
    assert live()["ShapeEnv"] == seen
    lowered, longer = (
        lower(first.graph_module, example_inputs=(X,)),
        torch.ones(3, 7, 4),
    )
    torch.testing.assert_close(lowered(longer), first(longer))


def surroundings() -> dict[str, Any]:
    """What a process shares, as far as it can be compared."""
    return {
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "threads": torch.get_num_threads(),
        "logging": logging.root.manager.disable,
        "filters": list(warnings.filters),
        "streams": (sys.stdout, sys.stderr),
        "environment": dict(os.environ),
        "exporting": torch.compiler.is_exporting(),
        "torch seed": torch.get_rng_state().tolist(),
        "numpy seed": repr(np.random.get_state()),
        "seed": random.getstate(),
    }


@pytest.mark.parametrize(
    "target", ["fx", "module", pytest.param("onnx", marks=pytest.mark.slow)]
)
def test_surroundings_are_as_before(target: Any) -> None:
    model = mlp()
    insert_gates(model, (X,), GateConfig(kinds=("mlp",)))
    gates(model)["mlp"].close([1])
    before = surroundings()
    lower(model, target)
    after = surroundings()
    assert [name for name in before if before[name] != after[name]] == []


def in_two_threads(work: Any) -> list[Any]:
    results: list[Any] = [None, None]
    start = threading.Barrier(2)

    def run(k: int) -> None:
        start.wait()
        try:
            results[k] = work(k)
        except BaseException as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_threads_lower_one_after_the_other() -> None:
    def work(k: int) -> tuple[nn.Module, Any]:
        for hidden in (8 + k, 12 - k):
            analyze(mlp(hidden), (X,))
            found = lower_gated(hidden)
        return found

    for (model, lowered), hidden in zip(in_two_threads(work), (12, 11), strict=True):
        assert lowered.model.get_parameter("0.weight").shape == (hidden - 2, 4)
        torch.testing.assert_close(lowered(X), model(X))


Snapshot = dict[str, Any]


def snapshot(model: nn.Module) -> Snapshot:
    """Everything that a model consists of, by path."""
    found: Snapshot = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            found[f"{path}.{name}"] = (
                list(value.items()) if isinstance(value, dict) else value
            )
        found[f"{path} class"] = type(module)
        found[f"{path} forward"] = module.forward.__func__
    tensors = model.state_dict()
    found["state"] = [(k, v.data_ptr(), v.clone()) for k, v in tensors.items()]
    found["parameters"] = [(n, id(p)) for n, p in model.named_parameters()]
    found["modules"] = [(n, id(m)) for n, m in model.named_modules()]
    config = getattr(model, "config", None)
    found["config"] = None if config is None else config.to_dict()
    return found


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [n for n in names if not _same(before.get(n), after.get(n))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(a, b) for a, b in pairs)
    return one is other or bool(one == other)


@pytest.mark.parametrize("config", [GateConfig(), GateConfig(coupling="none")])
def test_gates_leave_no_trace(config: GateConfig) -> None:
    model = bert(num_hidden_layers=1)
    before = snapshot(model)
    for _ in range(2):
        insert_gates(model, config=config)
        assert differences(before, snapshot(model)), "the snapshot sees the gates"
        remove_gates(model)
        assert differences(before, snapshot(model)) == []


def live() -> Counter[str]:
    """Objects of this process by kind."""
    gc.collect()
    kinds = (nn.Module, Tensor, torch.fx.Node, ShapeEnv, Program, RemovableHandle)
    types = (type(each) for each in gc.get_objects())
    return Counter(each.__name__ for each in types if issubclass(each, kinds))


def test_gates_put_on_twenty_times_leave_no_trace() -> None:
    model = mlp()
    before, alive = snapshot(model), Counter[str]()
    for number in range(20):
        insert_gates(model, (X,), GateConfig(kinds=("mlp",)))
        assert live() - alive, "the count sees the gates"
        remove_gates(model)
        assert differences(before, snapshot(model)) == []
        if number == 1:  # what is cached for good is there now
            alive = live()
    assert live() == alive


def test_lowering_leaves_no_trace() -> None:
    model = insert_gates(bert(num_hidden_layers=1))
    model.eval()(**bert_batch())  # settles the gates
    before = snapshot(model)
    lower(model)
    assert differences(before, snapshot(model)) == []


def test_growth_beyond_that_of_an_export_is_told() -> None:
    torchs = Growth(200, 400.0, 410.0, 50.0, 900.0, 60.0)
    assert faults(replace(torchs, slope=500.0, objects=910.0), torchs) == []
    (told,) = faults(replace(torchs, slope=600.0), torchs)
    assert told.startswith("not flat: 600.0 KiB per model, torch.export 50.0")
    assert len(faults(replace(torchs, slope=600.0, objects=1200.0), torchs)) == 2


@pytest.mark.slow
def test_memory_is_flat() -> None:
    torchs = measure(120, "export")
    assert faults(measure(120, "lower"), torchs) == []
    assert faults(measure(40, "keep"), torchs), "programs that are kept would show"
