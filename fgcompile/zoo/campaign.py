"""Many random programs, in blocks: `python -m fgcompile.zoo.campaign`.

With a ledger, finished blocks are written down and a second call does what is missing,
so that a campaign may be stopped at any time.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import torch._dynamo.config
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from fgcompile.targets.files import staged
from fgcompile.zoo.programs import PropertyError, check, closing_of, draw
from fgcompile.zoo.shrinking import describe

BLOCK = 100
"""Programs in a block."""

app = typer.Typer(add_completion=False)


@dataclass
class Block:
    """What became of the programs of `BLOCK` seeds.

    Attributes:
        seed: The first one.
        held: Programs for which everything held.
        smaller: Those among them that lost parameters.
        before: Parameters [count] of those that held, in all.
        after: The same when they were lowered.
        rules: Operators with a rule of their own that were in them.
        equal: Programs lowered to other targets with equal outputs, by target.
        refused: Programs that other targets could not express, by target.
        seconds: Wall time [s].
        failures: The shrunk program and what failed, for every other one.
    """

    seed: int
    held: int = 0
    smaller: int = 0
    before: int = 0
    after: int = 0
    rules: list[str] = field(default_factory=list)
    equal: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


@app.command()
def main(
    count: Annotated[int, typer.Option(min=1, help="Programs.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the first program.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    most: Annotated[int, typer.Option(help="Failures before it stops.")] = 5,
    shrink: Annotated[bool, typer.Option(help="Make failing programs small.")] = True,
    ledger: Annotated[
        Path | None, typer.Option(help="JSON of finished blocks.")
    ] = None,
) -> None:
    """Check random programs; if any fail, they are printed and 1 is returned.

    Seeds are taken in blocks of 100. Blocks that the ledger holds are not run again.
    """
    done = {} if ledger is None else read_ledger(ledger)
    wanted = range(seed, seed + count, BLOCK)
    blocks = [done[first] for first in wanted if first in done]
    missing = [first for first in wanted if first not in done]
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for block in _run(missing, seed + count, jobs, shrink, progress):
            blocks.append(block)
            done[block.seed] = block
            for failure in block.failures:
                print(f"{failure}\n", flush=True)
            if ledger is not None and min(BLOCK, seed + count - block.seed) == BLOCK:
                write_ledger(ledger, done)
            if sum(len(each.failures) for each in blocks) >= most:
                break
    print(summary(blocks))
    raise typer.Exit(int(any(block.failures for block in blocks)))


def _run(
    seeds: list[int], end: int, jobs: int, shrink: bool, progress: Progress
) -> Iterator[Block]:
    task = progress.add_task("programs", total=len(seeds) * BLOCK)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = [
            pool.submit(run_block, first, min(BLOCK, end - first), shrink)
            for first in seeds
        ]
        try:
            for future in as_completed(futures):
                progress.advance(task, BLOCK)
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run_block(seed: int, count: int = BLOCK, shrink: bool = True) -> Block:
    """Checks the programs of `count` seeds from `seed` on."""
    torch.set_num_threads(1)
    # No two programs are alike, so that remembering results costs more than it saves.
    torch._dynamo.config.fake_tensor_cache_enabled = False
    logging.disable(logging.ERROR)
    block, start = Block(seed), perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in range(seed, seed + count):
            _check_one(block, each, shrink)
    block.seconds = round(perf_counter() - start, 1)
    return block


def _check_one(block: Block, seed: int, shrink: bool) -> None:
    recipe, closing = draw(seed), closing_of(seed)
    try:
        outcome = check(recipe)
    except PropertyError as error:
        text = describe(recipe, closing, error) if shrink else str(error)
        block.failures.append(f"seed {seed} FAILED {text}")
        return
    block.held += 1
    block.smaller += outcome.after < outcome.before
    block.before += outcome.before
    block.after += outcome.after
    block.rules = sorted({*block.rules, *outcome.rules})
    for counts, targets in (
        (block.equal, outcome.equal),
        (block.refused, outcome.refused),
    ):
        for target in targets:
            counts[target] = counts.get(target, 0) + 1


def read_ledger(path: Path) -> dict[int, Block]:
    """The blocks in `path` by their first seed; none if there is no such file."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return {each["seed"]: Block(**each) for each in stored["blocks"]}


def write_ledger(path: Path, blocks: dict[int, Block]) -> None:
    """Writes `blocks` to `path`, atomically."""
    stored = {
        "torch": torch.__version__,
        "fgcompile": version("fgcompile"),
        "summary": summary(list(blocks.values())),
        "blocks": [asdict(blocks[first]) for first in sorted(blocks)],
    }
    with staged(path.parent) as folder:
        (folder / path.name).write_text(json.dumps(stored, indent=1) + "\n")


def summary(blocks: list[Block]) -> str:
    """Counts over all `blocks`, in one line."""
    held, smaller, before, after = (
        sum(getattr(block, name) for block in blocks)
        for name in ("held", "smaller", "before", "after")
    )
    failed = sum(len(block.failures) for block in blocks)
    rules = {rule for block in blocks for rule in block.rules}
    targets = [
        f"{sum(b.equal.get(target, 0) for b in blocks)} equal as {target} too "
        f"({sum(b.refused.get(target, 0) for b in blocks)} refused)"
        for target in ("module", "onnx")
    ]
    return (
        f"{held} programs hold, {failed} failed; {smaller} got smaller; "
        f"{before:,} -> {after:,} parameters; {'; '.join(targets)}; "
        f"{len(rules)} operators with rules; "
        f"{sum(block.seconds for block in blocks):.0f} s of one core"
    )


if __name__ == "__main__":
    sys.exit(app())
