"""`python -m fgcompile.zoo`: what becomes of every model of the zoo."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer

from fgcompile.zoo.closing import GATED, Result, close_by_name
from fgcompile.zoo.models import entries
from fgcompile.zoo.registry import Entry
from fgcompile.zoo.survey import survey
from fgcompile.zoo.table import line, markdown

app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Models; all.")] = None,
    kinds: Annotated[str, typer.Option(help="Kinds of gate.")] = ",".join(GATED),
    seed: Annotated[int, typer.Option(help="Which units are closed.")] = 0,
    onnx: Annotated[bool, typer.Option(help="All kinds at once, as ONNX.")] = False,
    capture: Annotated[bool, typer.Option(help="Only capture.")] = False,
    page: Annotated[Path | None, typer.Option("--markdown", help="Write here.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Close half of the units of each kind at random, lower, and compare.

    Prints one line per model: for each kind of group the share of the closed units'
    parameters that went, and the largest difference to the gated model. The exit
    status is 1 if anything failed, 2 if a name is unknown.
    """
    torch.set_num_threads(1)
    chosen = _chosen(names or [])
    if capture:
        raise typer.Exit(_survey(chosen))
    results: list[Result] = []
    close = partial(close_by_name, kinds=tuple(kinds.split(",")), onnx=onnx, seed=seed)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for result in pool.map(close, [each.name for each in chosen]):
            results.append(result)
            print(line(result), flush=True)
            if page is not None:
                page.write_text(markdown(results))
    raise typer.Exit(int(any(result.failed for result in results)))


def _chosen(names: list[str]) -> list[Entry]:
    known = {each.name: each for each in entries()}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown: {', '.join(unknown)}\n  Choose from: {', '.join(known)}")
        raise typer.Exit(2)
    return [known[name] for name in names or known]


def _survey(chosen: list[Entry]) -> int:
    failed = False
    for row in survey(chosen):
        print(row, flush=True)
        failed |= bool(row.error)
    return int(failed)


if __name__ == "__main__":
    sys.exit(app())
