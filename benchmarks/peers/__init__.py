"""The same zeros, removed by us and by what users would pick instead."""

from __future__ import annotations

from benchmarks.cells import Benchmark, Cell, Parameters, Result
from benchmarks.peers import tables

MODELS = ("bert", "gpt2", "llama", "vit")
ROUNDS = 3


def cells(smoke: bool) -> list[Cell]:
    """All tools on every model; on a tiny one alone without peers to install."""
    if smoke:
        return [Cell({"model": "bert", "small": True, "rounds": 1}, 600)]
    return [
        Cell({"model": model, "small": False, "rounds": ROUNDS}, 10_800)
        for model in MODELS
    ]


def measure(parameters: Parameters) -> Result:
    """One cell."""
    from benchmarks.peers.compare import compare

    return compare(**parameters)


BENCHMARK = Benchmark(
    "peers",
    "Against peers",
    cells,
    measure,
    tables.page,
    tables.summary,
    tables.plots,
)
