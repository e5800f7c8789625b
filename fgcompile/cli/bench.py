"""`fgcompile bench`: how fast models are, side by side."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from fgcompile.cli.analyze import Form
from fgcompile.cli.models import open_model
from fgcompile.cli.output import OutputOption, UsageError, working, write
from fgcompile.compiler import analyze, insert_gates, measure_latency
from fgcompile.gates import LatencyTable, gates
from fgcompile.lowering import lower
from fgcompile.targets.latency.cache import machine
from fgcompile.targets.latency.files import onnx_latencies
from fgcompile.targets.latency.measure import runtime
from fgcompile.targets.onnx import data_file

SCHEMA_VERSION = 2
WIDTH = 100


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        name: File, or what is left of the model.
        bytes: Size of the file.
        seconds: Measured latency.
        predicted: Latency [s] that a budget would have predicted.
        macs: Fraction of the MACs of the first model.
    """

    name: str
    bytes: int
    seconds: float
    predicted: float | None = None
    macs: float | None = None


@dataclass(frozen=True)
class Gain:
    """What one unit of a kind of group is predicted to save.

    Attributes:
        kind: Kind of the groups.
        units: Units of all of them.
        seconds: Saved by a unit while the first half of its group goes.
        fraction: The same over the dense latency.
    """

    kind: str
    units: int
    seconds: float
    fraction: float


@dataclass(frozen=True)
class _File:
    name: str
    path: Path
    predicted: float | None = None
    macs: float | None = None


def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            help="ONNX files to compare, the first is the reference; or one model (a "
            "folder or a name on the hub), of which smaller ones are made up.",
            metavar="MODEL...",
        ),
    ],
    batch: Annotated[int, typer.Option(min=1, help="Rows.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a row.")] = 128,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 10.0,
    keep: Annotated[
        str,
        typer.Option(
            help="For one model: shares of its heads and channels to keep, chosen at "
            "random. Time does not depend on which, so this tells what a budget gains.",
            metavar="SHARES",
        ),
    ] = "0.8,0.6,0.4",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Measure parts again that were measured on this machine."
        ),
    ] = False,
    form: Annotated[
        Form, typer.Option("--format", "-f", help="What to write.")
    ] = Form.TERMINAL,
    output: OutputOption = None,
) -> int:
    """Measure latency in ONNX Runtime, to compare models or to choose a budget.

    Of one model, it tells how fast it is, how fast with fewer heads and channels, and
    what one of them costs. A ratio of 0.70 is what Budget(latency=0.70) reaches; choose
    the sizes that you serve with, and a quiet machine. All models run in turns; times
    are medians, ratios are to the first. Predictions are those of the budget; where
    they are off by more than a few percent, something disturbed the machine: --fresh.

    Example: fgcompile bench my-model/ --length 64 --threads 2

    Several models: fgcompile bench dense.onnx small.onnx --format json
    """
    shares = _shares(keep)
    made = len(models) == 1 and not models[0].endswith(".onnx")
    table: LatencyTable | None = None
    with tempfile.TemporaryDirectory(prefix="fgcompile-") as folder:
        if made:
            model = open_model(models[0])
            with working("measuring the dense model and its parts"):
                table = measure_latency(
                    model, batch=batch, length=length, threads=threads, fresh=fresh
                )
            files = list(_smaller(model, table, shares, Path(folder)))
        else:
            files = [_File(name, Path(name)) for name in models]
        with working(f"measuring {len(files)} models"):
            paths = [file.path for file in files]
            times = onnx_latencies(paths, batch, length, threads, seconds)
        rows = [
            Row(file.name, _size(file.path), taken, file.predicted, file.macs)
            for file, taken in zip(files, times, strict=True)
        ]
    sizes = {"batch": batch, "length": length, "threads": threads}
    text = _as_json(rows, table, sizes) if form is Form.JSON else _as_text(rows, table)
    write(text, output)
    return 0


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares):
        raise UsageError(
            f'cannot read the shares "{text}"\n'
            "  Give numbers between 0 and 1, for example --keep 0.8,0.5."
        )
    return shares


def _smaller(
    model: nn.Module, table: LatencyTable, shares: list[float], folder: Path
) -> Iterator[_File]:
    """The dense model, and one for each share, as ONNX files."""
    analysis = analyze(model)
    with working("writing the dense model"):
        lower(model, "onnx", folder / "dense.onnx", verify=False)
    yield _File("dense", folder / "dense.onnx", table.seconds, 1.0)
    insert_gates(model)
    for share in shares:
        torch.manual_seed(0)
        closed, kept = {}, {}
        for name, gate in gates(model).items():
            gate.reopen()
            kept[name] = round(gate.size * share)
            closed[name] = torch.randperm(gate.size)[kept[name] :]
            gate.close(closed[name])
        path = folder / f"{share}.onnx"
        with working(f"writing {share:.0%} of the units"):
            lower(model, "onnx", path, verify=False)
        macs = analysis.macs_after(closed) / analysis.macs
        yield _File(f"{share:.0%} of the units", path, table.predict(kept), macs)


def _size(path: Path) -> int:
    data = data_file(path)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _gains(table: LatencyTable) -> list[Gain]:
    """By kind of group."""
    units: dict[str, int] = {}
    saved: dict[str, float] = {}
    gone: dict[str, int] = {}
    for group in table.groups:
        size = group.units[-1]
        half = size // 2
        less = table.seconds - table.predict({group.name: half})
        units[group.kind] = units.get(group.kind, 0) + size
        saved[group.kind] = saved.get(group.kind, 0.0) + less
        gone[group.kind] = gone.get(group.kind, 0) + size - half
    return [
        Gain(
            *(kind, units[kind], saved[kind] / gone[kind]),
            saved[kind] / gone[kind] / table.seconds,
        )
        for kind in units
    ]


def _floor(table: LatencyTable) -> float:
    """Fraction of the latency that stays if every unit goes."""
    nothing = {group.name: 0 for group in table.groups}
    return max(table.predict(nothing) / table.seconds, 0.0)


def _as_json(rows: list[Row], table: LatencyTable | None, sizes: dict[str, int]) -> str:
    found = {
        "schema_version": SCHEMA_VERSION,
        "machine": machine(),
        "runtime": runtime(),
        **sizes,
        "models": [asdict(row) for row in rows],
        "units": [] if table is None else [asdict(gain) for gain in _gains(table)],
        "floor": None if table is None else _floor(table),
    }
    return json.dumps(found, indent=1) + "\n"


def _as_text(rows: list[Row], table: LatencyTable | None) -> str:
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as text:
        console.print(_as_table(rows), markup=False, highlight=False)
        if table is not None:
            for line in _advice(table):
                console.print(line, highlight=False)
    return text.get()


def _as_table(rows: list[Row]) -> Table:
    shown = Table("model", box=None, pad_edge=False)
    headings = ["MB", "ms", "ratio"]
    predicted = any(row.predicted is not None for row in rows)
    headings += ["predicted", "ratio of MACs"] if predicted else []
    for heading in headings:
        shown.add_column(heading, justify="right")
    first = rows[0]
    for row in rows:
        cells = [f"{row.bytes / 1e6:.1f}", f"{row.seconds * 1e3:.2f}"]
        cells.append(f"{row.seconds / first.seconds:.2f}")
        if row.predicted is not None and first.predicted is not None:
            cells += [f"{row.predicted / first.predicted:.2f}", f"{row.macs:.2f}"]
        shown.add_row(row.name, *cells)
    return shown


def _advice(table: LatencyTable) -> Iterator[str]:
    for gain in _gains(table):
        yield (
            f"one of {gain.units:,} {gain.kind} units saves about "
            f"{gain.seconds * 1e6:.2f} microseconds, {gain.fraction:.4%} of the latency"
        )
    yield (
        f"{_floor(table):.0%} of the latency is outside every gate: "
        "no Budget(latency=...) can be below that"
    )
