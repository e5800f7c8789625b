"""The same zeros, removed by us and by what users would pick instead."""

from __future__ import annotations

from benchmarks.cells import Benchmark, Cell, Parameters, Result
from benchmarks.peers import tables

MODELS = ("bert", "gpt2", "llama", "vit")
PEERS = ("fgcompile", "torch-pruning", "onnxsim", "torch.ao", "script")


def cells(smoke: bool) -> list[Cell]:
    """Every peer on every model; on a tiny one alone without peers to install."""
    if smoke:
        few = ("fgcompile", "script", "torch.ao")
        return [
            Cell({"model": "bert", "peer": peer, "small": True}, 300) for peer in few
        ]
    return [
        Cell({"model": model, "peer": peer, "small": False})
        for model in MODELS
        for peer in PEERS
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
