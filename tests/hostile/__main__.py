"""Feeds damaged files to every reader: `python -m tests.hostile --inputs 10000`.

Each input is a valid file, or a folder of them, that was damaged as its number says:
the same seed and number give the same input. A reader may accept it or raise an
FgcompileError. It may not raise anything else, die, use 10 s of processor time or
2 GB of memory, open a file outside of the folder, run code, or ask the user.

    python -m tests.hostile --only onnx:17 --keep /tmp/case   # one input, to look at
    python -m tests.hostile --shrink

With --shrink hypothesis makes the inputs instead, other ones in each run. It stops at
the first defect of a reader, makes that input small, and keeps it in .hypothesis: the
next run begins with it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.hostile.guard import Guard
from tests.hostile.runner import Tally, damage, numbered, read_case, run
from tests.hostile.shrinking import DefectError, search
from tests.hostile.targets import TARGETS, write_outside

_DATABASE = Path(".hypothesis") / "hostile"


def main() -> int:
    """Prints a line per defect and a table; 1 if there was a defect."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile")
    parser.add_argument("--inputs", type=int, default=10_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=TARGETS)
    parser.add_argument(
        "--only", help="one input, as target:number; its error is shown"
    )
    parser.add_argument("--keep", type=Path, help="with --only: copy the input there")
    parser.add_argument(
        "--shrink", action="store_true", help="hypothesis makes the inputs, small ones"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_outside(work / "outside")
        if options.only:
            return _one(options, work)
        return _all(options, work)


def _one(options: argparse.Namespace, work: Path) -> int:
    name, _, number = options.only.partition(":")
    target = TARGETS[name]
    guard = Guard(work, work / "outside")
    change = damage(target, numbered(target, options.seed, int(number)), work)
    outcome = read_case(target, work, guard)
    print(outcome.kind, outcome.detail, change)
    if options.keep:
        shutil.copytree(work / "case", options.keep, symlinks=True)
    target.use(work / "case")
    return int(outcome.defect)


def _all(options: argparse.Namespace, work: Path) -> int:
    shares = {name: TARGETS[name].share for name in options.targets}
    tallies, failed = {}, False
    print("hypothesis" if options.shrink else f"seed {options.seed}")
    for name, share in shares.items():
        count = max(1, round(options.inputs * share / sum(shares.values())))
        start = time.monotonic()
        try:
            tallies[name] = _inputs(options, name, count, work)
        except DefectError as error:
            failed = True
            _tell(str(error))
            continue
        _tell(f"{name}: {count} inputs in {time.monotonic() - start:.0f} s")
    print(table(tallies))
    return int(failed or any(tally.defects for tally in tallies.values()))


def _inputs(options: argparse.Namespace, name: str, count: int, work: Path) -> Tally:
    if options.shrink:
        return search(TARGETS[name], count, work, _DATABASE)
    return run(TARGETS[name], options.seed, range(count), work, _tell)


def _tell(text: str) -> None:
    print(text, flush=True)


def table(tallies: dict[str, Tally]) -> str:
    """Counts per reader, as Markdown."""
    rows = ["| reader | inputs | accepted | refused | defects | slowest s | MB |"]
    rows.append("|---|---|---|---|---|---|---|")
    total = 0
    for name, tally in tallies.items():
        inputs = sum(tally.counts.values())
        total += inputs
        good = tally.counts["accepted"], tally.counts["refused"]
        cells = (name, inputs, *good, inputs - sum(good))
        rows.append(
            f"| {' | '.join(map(str, cells))} | {tally.slowest:.1f} "
            f"| {tally.megabytes} |"
        )
    return "\n".join([*rows, f"\n{total:,} inputs"])


if __name__ == "__main__":
    sys.exit(main())
