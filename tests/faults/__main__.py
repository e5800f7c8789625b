"""Breaks writing in every way it breaks in practice: `python -m tests.faults`.

Whatever happens, the old output is intact or the new one is complete. Processes are
killed at random moments and before random changes to files (`--times` each), disks are
full, folders cannot be written, and two processes write the same output at once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from tests.faults import campaign
from tests.faults.writers import WRITERS, Writer


def main() -> int:
    """Prints a table; 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--times", type=int, default=100, help="kills of each writer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20, help="writes of each of two")
    parser.add_argument("--writers", nargs="*", default=list(WRITERS), choices=WRITERS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"seed {options.seed}")
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # What lowering leaves in the folder for temporary files goes with the run.
        tempfile.tempdir = folder
        for name in options.writers:
            broken += _all(WRITERS[name](work), options, work)
    print("nothing was lost" if not broken else f"{broken} broken")
    return int(broken > 0)


def _all(writer: Writer, options: argparse.Namespace, work: Path) -> int:
    times = max(1, round(options.times * writer.share))
    rows = {"killed": campaign.kill(writer, times, options.seed, work)}
    rows["full disk"] = campaign.full_disk(writer, work, (0, 300, 2000))
    rows["read only"] = campaign.read_only(writer, work)
    if writer.share == 1.0:
        rows["two writers"] = campaign.two_writers(writer, work, options.rounds)
    for what, found in rows.items():
        print(f"| {writer.name} | {what} | {_text(found)} |", flush=True)
    return sum(
        number
        for found in rows.values()
        for text, number in found.items()
        if text.startswith("BROKEN")
    )


def _text(found: Counter[str]) -> str:
    return ", ".join(f"{number} {text}" for text, number in found.items())


if __name__ == "__main__":
    sys.exit(main())
