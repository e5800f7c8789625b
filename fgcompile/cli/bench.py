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

from fgcompile.analysis.coupling import Analysis
from fgcompile.capture import default_inputs
from fgcompile.cli.analyze import Form
from fgcompile.cli.models import open_model
from fgcompile.cli.output import OutputOption, UsageError, working, write
from fgcompile.compiler import analyze, insert_gates
from fgcompile.gates import gates
from fgcompile.lowering import lower
from fgcompile.targets.latency import onnx_latencies
from fgcompile.targets.onnx import data_file

SCHEMA_VERSION = 1
WIDTH = 100


@dataclass(frozen=True)
class Row:
    """One model: size [bytes], latency [s], and its part of the first one's MACs."""

    name: str
    bytes: int
    seconds: float
    macs: float | None = None


@dataclass(frozen=True)
class Gain:
    """What one unit of a kind of group is predicted to save [s]."""

    kind: str
    units: int
    seconds: float


@dataclass(frozen=True)
class _File:
    name: str
    path: Path
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
    form: Annotated[
        Form, typer.Option("--format", "-f", help="What to write.")
    ] = Form.TERMINAL,
    output: OutputOption = None,
) -> int:
    """Measure latency in ONNX Runtime: all models in turns, medians and ratios.

    Example: fgcompile bench dense.onnx small.onnx --length 64
    """
    shares = _shares(keep)
    with tempfile.TemporaryDirectory(prefix="fgcompile-") as folder:
        made = len(models) == 1 and not models[0].endswith(".onnx")
        if made:
            model = open_model(models[0])
            analysis = analyze(model, default_inputs(model, length=length))
            files = list(_smaller(model, analysis, shares, Path(folder)))
        else:
            files = [_File(name, Path(name)) for name in models]
        with working(f"measuring {len(files)} models"):
            paths = [file.path for file in files]
            times = onnx_latencies(paths, batch, length, threads, seconds)
        rows = [
            Row(file.name, _size(file.path), taken, file.macs)
            for file, taken in zip(files, times, strict=True)
        ]
    gains = _gains(analysis, rows) if made else []
    write(_as_json(rows, gains) if form is Form.JSON else _table(rows, gains), output)
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
    model: nn.Module, analysis: Analysis, shares: list[float], folder: Path
) -> Iterator[_File]:
    """The dense model, and one for each share, as ONNX files."""
    with working("writing the dense model"):
        lower(model, "onnx", folder / "dense.onnx", verify=False)
    yield _File("dense", folder / "dense.onnx", 1.0)
    insert_gates(model)
    for share in shares:
        torch.manual_seed(0)
        closed = {}
        for name, gate in gates(model).items():
            gate.reopen()
            gone = torch.randperm(gate.size)[round(gate.size * share) :]
            gate.close(gone)
            closed[name] = gone
        path = folder / f"{share}.onnx"
        with working(f"writing {share:.0%} of the units"):
            lower(model, "onnx", path, verify=False)
        macs = analysis.macs_after(closed) / analysis.macs
        yield _File(f"{share:.0%} of the units", path, macs)


def _size(path: Path) -> int:
    data = data_file(path)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _gains(analysis: Analysis, rows: list[Row]) -> list[Gain]:
    """Seconds per unit, from what a MAC cost between the first and the last row."""
    first, last = rows[0], rows[-1]
    assert first.macs is not None
    assert last.macs is not None
    removed = (first.macs - last.macs) * analysis.macs
    rate = (first.seconds - last.seconds) / removed if removed else 0.0
    totals: dict[str, list[float]] = {}
    for group in analysis.groups:
        if group.pinned is None and group.kind in ("mlp", "head"):
            kind = totals.setdefault(group.kind, [0, 0.0])
            kind[0] += group.size
            kind[1] += float(group.macs.sum())
    return [
        Gain(kind, int(units), rate * macs / units)
        for kind, (units, macs) in totals.items()
    ]


def _as_json(rows: list[Row], gains: list[Gain]) -> str:
    found = {
        "schema_version": SCHEMA_VERSION,
        "models": [asdict(row) for row in rows],
        "units": [asdict(gain) for gain in gains],
    }
    return json.dumps(found, indent=1) + "\n"


def _table(rows: list[Row], gains: list[Gain]) -> str:
    shown = Table("model", box=None, pad_edge=False)
    for heading in ("MB", "ms", "ratio", "ratio of MACs"):
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(
            row.name,
            f"{row.bytes / 1e6:.1f}",
            f"{row.seconds * 1e3:.2f}",
            f"{row.seconds / rows[0].seconds:.2f}",
            "" if row.macs is None else f"{row.macs:.2f}",
        )
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as text:
        console.print(shown, markup=False, highlight=False)
        for gain in gains:
            console.print(
                f"one of {gain.units:,} {gain.kind} units saves about "
                f"{gain.seconds * 1e6:.2f} microseconds",
                highlight=False,
            )
    return text.get()
