"""Whether a latency budget keeps its word: predicted and measured latency."""

from __future__ import annotations

from benchmarks.cells import Benchmark, Cell, Parameters, Result
from benchmarks.latency_budget import tables

MODELS = ("bert-base", "llama-1b")
LIMITS = (0.6, 0.8, 0.4)
SECONDS = 30.0
"""Time spent on a measurement of dense and lowered model."""


def cells(smoke: bool) -> list[Cell]:
    """Every model under every limit, one row of 128 tokens on one thread."""
    if smoke:
        return [_cell("small-bert", 0.6, 2.0, 600)]
    return [_cell(model, limit, SECONDS, 5400) for limit in LIMITS for model in MODELS]


def _cell(model: str, limit: float, seconds: float, longest: float) -> Cell:
    size = {"batch": 1, "tokens": 128, "threads": 1}
    return Cell({"model": model, "limit": limit, **size, "seconds": seconds}, longest)


def measure(parameters: Parameters) -> Result:
    """One cell."""
    from benchmarks.latency_budget.case import predicted_and_measured

    return predicted_and_measured(**parameters)


BENCHMARK = Benchmark(
    "latency_budget",
    "Whether a latency budget keeps its word",
    cells,
    measure,
    tables.page,
    tables.summary,
    tables.plots,
)
