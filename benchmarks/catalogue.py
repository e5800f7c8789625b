"""The benchmarks by name."""

from __future__ import annotations

from importlib import import_module

from benchmarks.cells import Benchmark

NAMES = ("limit", "peers", "compile", "latency_budget")
"""Those made of cells: their modules hold a `BENCHMARK`."""

SCRIPTS = {
    "claims": "Whether claims of the papers hold on a small network",
    "glue": "The methods of the papers on GLUE: accuracy against size",
    "int8": "What int8 weights cost in accuracy and save in time",
    "large_checkpoint": "Time and memory of lowering a checkpoint of gigabytes",
    "method_times": "Latency with random gates, and time to switch adapters",
    "runtimes": "Latency of MiniLM in three runtimes, beside the ratio of MACs",
    "stories": "Loss against removed parameters, for every method",
    "training_cost": "Time and memory of a training step, method by method",
}
"""Those that are one program with options of its own."""


def benchmark(name: str) -> Benchmark:
    """The benchmark called `name`, one of `NAMES`."""
    found = import_module(f"benchmarks.{name}").BENCHMARK
    assert isinstance(found, Benchmark)
    return found
