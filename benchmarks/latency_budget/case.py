"""One model under one latency budget."""

from __future__ import annotations

import gc
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fgcompile
from benchmarks.cells import Result
from benchmarks.shapes import build
from fgcompile.gates import container_of
from fgcompile.targets.latency.files import onnx_latencies
from fgcompile.targets.onnx import write_onnx
from fgcompile.targets.timing import undisturbed_clock


def close_by_budget(model: nn.Module, seed: int = 0) -> dict[str, int]:
    """Units kept by gate, as the budget of `model` chooses them at its end.

    Importance is random, and as large on average for what a unit costs in all groups.
    """
    container = container_of(model)
    objective: Any = container.objective
    generator = torch.Generator().manual_seed(seed)
    costs = objective.curves.unit_costs()
    for gate, cost in zip(container.each(), costs, strict=True):
        gate.importance.copy_(cost * torch.rand(gate.size, generator=generator))
    container.updates.fill_(objective.budget.begin + objective.budget.ramp)
    container.settle()
    return {name: int(gate.open.sum()) for name, gate in fgcompile.gates(model).items()}


def predicted_and_measured(
    model: str, limit: float, batch: int, tokens: int, threads: int, seconds: float
) -> Result:
    """Predicts and measures a model with random weights at one limit.

    Latencies are measured as `insert_gates` does, units closed as the budget chooses
    them, and the lowered model and the dense one run in turns.
    """
    torch.set_num_threads(threads)
    size: dict[str, Any] = {"batch": batch, "length": tokens, "threads": threads}
    net = build(model)
    parameters = sum(p.numel() for p in net.parameters())
    start = time.perf_counter()
    table = fgcompile.measure_latency(net, **size)
    measuring = time.perf_counter() - start
    budget = fgcompile.Budget(latency=limit, measured=table, **size)
    with tempfile.TemporaryDirectory(prefix="fgcompile-") as folder:
        files = [Path(folder) / "dense.onnx", Path(folder) / "lowered.onnx"]
        # Programs, not lowered files: those would hold sessions, and memory.
        write_onnx(fgcompile.analyze(net).program, files[0])
        fgcompile.insert_gates(net, config=fgcompile.GateConfig(budget=budget))
        kept = close_by_budget(net)
        share = fgcompile.status(net)["open"]
        write_onnx(fgcompile.lower(net, verify=False).program, files[1])
        del net
        gc.collect()
        clock = undisturbed_clock(threads)
        dense, lowered = onnx_latencies(files, **size, seconds=seconds, clock=clock)
    predicted, measured = table.predict(kept) / table.seconds, lowered / dense
    return {
        "threads": threads,
        "clock": "wall" if clock is time.perf_counter else "processor",
        "parameters": parameters,
        "predicted": predicted,
        "measured": measured,
        "error": measured / predicted - 1,
        "dense_seconds": dense,
        "lowered_seconds": lowered,
        "table_dense_seconds": table.seconds,
        "open": share,
        "seconds_to_measure": measuring,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
