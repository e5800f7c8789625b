"""`python -m benchmarks`: run benchmarks, and make tables and plots of their results.

    python -m benchmarks list
    python -m benchmarks run limit --minutes 60
    python -m benchmarks table

Results are added to benchmarks/results/NAME.json cell by cell: a second call does only
what is missing. Tables and plots are made from those files alone.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import catalogue, pages
from benchmarks.runner import run as run_cells
from benchmarks.store import RESULTS

app = typer.Typer(
    add_completion=False,
    help=__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # the last line of a failure is its message
)

run = typer.Typer(help="Measure what a benchmark is about.", no_args_is_help=True)
app.add_typer(run, name="run")

_PASSES_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("list")
def list_benchmarks() -> None:
    """What there is to run."""
    for name in catalogue.NAMES:
        found = catalogue.benchmark(name)
        print(f"{name:18}{found.about} ({len(found.cells(False))} cells)")
    for name, about in catalogue.SCRIPTS.items():
        print(f"{name:18}{about} (options of its own: run {name} --help)")


def _measure(
    context: typer.Context,
    smoke: Annotated[bool, typer.Option(help="Small cells, seconds each.")] = False,
    only: Annotated[
        str, typer.Option(help="Words of a cell, as in 'model=minilm batch=1'.")
    ] = "",
    redo: Annotated[bool, typer.Option(help="Measure again.")] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Begin no cell after this.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.")] = None,
) -> None:
    """Measure what has no result yet, one process at a time."""
    name = str(context.info_name)
    file = (out or (_temporary() if smoke else RESULTS)) / f"{name}.json"
    found = catalogue.benchmark(name)
    records = run_cells(found, file, smoke=smoke, only=only, redo=redo, minutes=minutes)
    print(found.page(records))
    print(f"{len(records)} of {len(found.cells(smoke))} cells in {file}")
    raise typer.Exit(int(any(record.result is None for record in records)))


def _run_script(context: typer.Context) -> None:
    """Run the program with all options that follow its name."""
    name = context.info_name
    sys.argv = [f"benchmarks run {name}", *context.args]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)


for _name in catalogue.NAMES:
    run.command(_name, short_help=catalogue.benchmark(_name).about)(_measure)
for _name, _about in catalogue.SCRIPTS.items():
    run.command(
        _name,
        short_help=_about,
        context_settings=_PASSES_ON,
        add_help_option=False,  # it has a page of its own
    )(_run_script)


def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="benchmarks-"))


@app.command()
def table() -> None:
    """Write docs/benchmarks.md with its plots, and the tables of the README.

    Others write their own pages: `run glue --table docs/glue.md`, `run stories --page`.
    """
    for file in pages.write_all():
        print(file)


@app.command(hidden=True)
def cell(name: str, parameters: str, out: Path) -> None:
    """Measure one cell in this process; `run` calls it."""
    # Left as an exception, so that what this process started is ended as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    result = catalogue.benchmark(name).measure(json.loads(parameters))
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    os.replace(partial, out)


if __name__ == "__main__":
    app()
