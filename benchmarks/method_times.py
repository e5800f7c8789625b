"""What the papers' methods cost when they are used, with random gates and adapters.

    python -m benchmarks.method_times compaction [--threads 2]
    python -m benchmarks.method_times switching

`compaction`: onnxruntime latency of all-MiniLM-L6-v2 relative to dense, one sentence of
128 tokens, with every gate closed to the same share at random: FineGates' independent
rows and columns, which need gathers and scatters, beside one shared gate per group.
Timing needs no training. `switching`: time to exchange one adapter for another on the
CPU, S2FT's block beside LoRA's dense update of equally many parameters.

Both print a table and keep their figures in benchmarks/results, which
`python -m benchmarks.doc_tables` puts into docs/methods.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fgcompile
from benchmarks import record
from benchmarks.glue.latency import latencies
from examples.embeddings import Embedder, minilm_folder
from fgcompile import GateConfig
from fgcompile.methods import S2ftAdapter, S2ftEntry, fuse, switch
from fgcompile.targets.timing import median_times, undisturbed_clock

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
COUPLINGS = ("none", "shared")
WIDTHS = (256, 1024, 4096, 8192)
RANK = 16


def compaction(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Latency and parameters that are left, by closed share and kind of gates."""
    with tempfile.TemporaryDirectory() as name:
        made = {
            (share, coupling): _closed(Path(name), share, coupling)
            for share in track(options.shares, "lower", transient=True)
            for coupling in COUPLINGS
        }
        times = latencies([file for file, _ in made.values()], options.threads)
    timed = dict(zip(made, times, strict=True))
    return [
        {
            "closed": share,
            "coupling": coupling,
            "ms": 1000 * timed[share, coupling],
            "relative": timed[share, coupling] / timed[options.shares[0], coupling],
            "left": parameters / made[options.shares[0], coupling][1],
        }
        for (share, coupling), (_, parameters) in made.items()
    ]


def _closed(folder: Path, share: float, coupling: Any) -> tuple[Path, int]:
    """The lowered file, and the parameters in it [count]."""
    model = Embedder(minilm_folder()).eval()
    ids = torch.full((2, 16), 1000)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    config = GateConfig(coupling=coupling, objective="none")
    fgcompile.insert_gates(model, inputs, config)
    generator = torch.Generator().manual_seed(0)
    for gate in fgcompile.gates(model).values():
        order = torch.randperm(gate.size, generator=generator)
        gate.close(order[: round(share * gate.size)])
    lowered = fgcompile.lower(model, "onnx", folder / f"{share}-{coupling}.onnx")
    parameters = lowered.program.graph_module.parameters()
    return folder / f"{share}-{coupling}.onnx", sum(p.numel() for p in parameters)


def switching(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time of a switch, by the width of a square matrix."""
    return [
        switch_times(width, options.threads)
        for width in track(options.widths, "switch", transient=True)
    ]


def switch_times(width: int, threads: int = 1) -> dict[str, Any]:
    """Of one matrix: exchanging columns, products of LoRA, and whole matrices [ms]."""
    switches = [_s2ft(width), _lora(width), _dense(width)]
    times = median_times(switches, clock=undisturbed_clock(threads))
    sparse, low_rank, whole = times
    return {
        "width": width,
        "s2ft_ms": 1000 * sparse,
        "lora_ms": 1000 * low_rank,
        "dense_ms": 1000 * whole,
        "relative": sparse / low_rank,
        "relative_to_dense": sparse / whole,
    }


def _s2ft(width: int) -> Callable[[], object]:
    """Exchanges two blocks of 2 * RANK columns, as many parameters as LoRA has."""
    model = nn.Sequential(nn.Linear(width, width, bias=False))
    adapters = [_adapter(width) for _ in range(2)]
    fuse(model, adapters[0])

    def once() -> None:
        switch(model, adapters[0], adapters[1])
        adapters.reverse()

    return once


def _adapter(width: int) -> S2ftAdapter:
    index = torch.randperm(width)[: 2 * RANK].sort().values
    update = torch.randn(width, 2 * RANK)
    entry = S2ftEntry(1, "columns", (width, width), index, update)
    return S2ftAdapter({("0.weight", "columns"): entry})


@torch.no_grad()
def _lora(width: int) -> Callable[[], object]:
    """Takes one product off the weight and adds another."""
    weight = torch.randn(width, width)
    pairs = [(torch.randn(width, RANK), torch.randn(RANK, width)) for _ in range(2)]

    def once() -> Tensor:
        (b, a), (d, c) = pairs
        pairs.reverse()
        return weight.addmm_(b, a, alpha=-1.0).addmm_(d, c)

    return once


@torch.no_grad()
def _dense(width: int) -> Callable[[], object]:
    """Takes one update of all weights off and adds another."""
    weight = torch.randn(width, width)
    updates = [torch.randn(width, width) for _ in range(2)]

    def once() -> Tensor:
        old, new = updates
        updates.reverse()
        return weight.sub_(old).add_(new)

    return once


def shown(records: list[dict[str, Any]]) -> Table:
    """The figures as a table, one row a record."""
    table = Table(*records[0])
    for found in records:
        table.add_row(*(_cell(value) for value in found.values()))
    return table


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> None:
    """Prints one of the tables, and keeps its figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.method_times",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measures = {"compaction": compaction, "switching": switching}
    numbers = lambda kind: lambda text: tuple(map(kind, text.split(",")))  # noqa: E731
    parser.add_argument("what", choices=measures)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shares", type=numbers(float), default=SHARES)
    parser.add_argument("--widths", type=numbers(int), default=WIDTHS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    records = measures[options.what](options)
    record.write(options.what, {"records": records}, options.threads)
    Console().print(shown(records))


if __name__ == "__main__":
    main()
