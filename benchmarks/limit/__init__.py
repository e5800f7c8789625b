"""Latency against the limit: the part of the multiply-accumulates that is left."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cells import Benchmark, Cell, Parameters, Result
from benchmarks.limit import tables

REMOVED = (40, 20, 60, 50, 30, 10)
"""Percent of heads and channels, the most important first."""

SMALL = ("bert-base", "minilm", "vit-base")
LARGE = "llama-1b"
LARGE_REMOVED = (40, 50, 20)
LARGE_LAST = (60, 30, 10)
"""Percent that are removed from the large one, and those that can wait."""

PLAIN = ("dense", "shared", "finegates")


def cells(smoke: bool) -> list[Cell]:
    """One row of 128 tokens on one thread first, where 40 % are removed."""
    if smoke:
        return [_cell("tiny-bert", 40, 1, 16, 1)]
    found = [_cell(model, 40, 1, 128, 1) for model in (*SMALL, LARGE)]
    found += [_cell(m, r, 1, 128, 1) for r in REMOVED[1:] for m in SMALL]
    found += [_cell(LARGE, r, 1, 128, 1) for r in LARGE_REMOVED[1:]]
    found += _grid(40)
    for removed in REMOVED[1:]:
        found += _grid(removed)
    found += [_cell(LARGE, removed, 1, 128, 1) for removed in LARGE_LAST]
    found += [_cell(LARGE, 40, 8, 128, threads) for threads in (1, 2)]
    # What every model and share shares keeps the place where it came first.
    return list({cell.key: cell for cell in found}.values())


def _grid(removed: int) -> Iterator[Cell]:
    """All sizes; the one of a billion parameters only with one row, and few shares."""
    for threads in (1, 2):
        for batch, tokens in ((1, 128), (1, 16), (1, 512), (8, 128), (8, 16), (8, 512)):
            for model in SMALL:
                yield _cell(model, removed, batch, tokens, threads)
            if batch == 1 and removed in LARGE_REMOVED:
                yield _cell(LARGE, removed, batch, tokens, threads)


def _cell(model: str, removed: int, batch: int, tokens: int, threads: int) -> Cell:
    tokens = 197 if model == "vit-base" else tokens  # its pictures have one size
    parameters = {
        "model": model,
        "removed": removed,
        "batch": batch,
        "tokens": tokens,
        "threads": threads,
    }
    return Cell(parameters, 3600 if model == LARGE else 1800)


def variants(parameters: Parameters) -> tuple[str, ...]:
    """What is measured in a cell.

    FineGates with all of its gathers is measured where the plot shows it; where the
    model is large, for one share of it.
    """
    model, removed = parameters["model"], parameters["removed"]
    if model.startswith("tiny"):
        return PLAIN[:2]
    shown = tables.shown(parameters) and (model != LARGE or removed == REMOVED[0])
    return (*PLAIN, "gathers") if shown else PLAIN


def measure(parameters: Parameters) -> Result:
    """One cell."""
    from benchmarks.limit.latency import latencies

    return latencies(**parameters, variants=variants(parameters))


BENCHMARK = Benchmark(
    "limit",
    "Latency against the limit",
    cells,
    measure,
    tables.page,
    tables.summary,
    tables.plots,
)
