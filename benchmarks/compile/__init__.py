"""What compiling costs: seconds and memory of every stage, and how they grow."""

from __future__ import annotations

from benchmarks.cells import Benchmark, Cell, Parameters, Result
from benchmarks.compile import tables
from benchmarks.compile.tables import FIXED_LAYERS, FIXED_WIDTH

SIZES = ("minilm", "bert-base", "bert-large", "llama-1b")
GROWTH = (
    *((FIXED_WIDTH, layers) for layers in (8, 16, 32, 64)),
    *((width, FIXED_LAYERS) for width in (512, 2048, 4096, 8192)),
)
"""Widths and layers, of which one grows and the other is fixed."""
LARGE = ((4096, 32, 14336, 128256), (8192, 80, 28672, 128256))
"""Llama-8B and -70B: width, layers, feed-forward width and vocabulary."""


def cells(smoke: bool) -> list[Cell]:
    """All stages on models with weights; analysis alone on larger ones without."""
    if smoke:
        small = Cell({"model": "tiny-bert", "rounds": 1}, 300)
        return [small, Cell(_shape(64, 2, 128, 100), 300)]
    found = [
        Cell({"model": model, "rounds": 1 if model == "llama-1b" else 3}, 3600)
        for model in SIZES
    ]
    found += [Cell(_shape(*shape), 1200) for shape in LARGE]
    return found + [Cell(_shape(w, n, 4 * w, 32000), 1200) for w, n in GROWTH]


def _shape(width: int, layers: int, inner: int, vocabulary: int) -> Parameters:
    return {"width": width, "layers": layers, "inner": inner, "vocabulary": vocabulary}


def measure(parameters: Parameters) -> Result:
    """One cell."""
    from benchmarks.compile import stages

    if "model" in parameters:
        return stages.all_stages(**parameters)
    return stages.analysis_alone(**parameters)


BENCHMARK = Benchmark(
    "compile",
    "What compiling costs",
    cells,
    measure,
    tables.page,
    tables.summary,
    tables.plots,
)
