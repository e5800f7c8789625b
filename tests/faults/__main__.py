"""Breaks writing in every way it breaks in practice: `python -m tests.faults`.

Whatever happens, the old output is intact or the new one is complete. Processes are
killed at random moments and before random changes to files (`--times` each), disks are
full, folders cannot be written, two processes write the same output at once, and the
download of a model from a hub stops half-way.

Small file systems need the right to mount: `unshare -rm python -m tests.faults` gives
it to a user who is not root, where the kernel allows that.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.faults import campaign, places
from tests.faults.download import INTERRUPTIONS, interrupted
from tests.faults.writers import WRITERS

DOWNLOAD = "download"
"""Its row beside those of the writers."""


def main() -> int:
    """Prints a table; 1 if anything was lost."""
    every = [*WRITERS, DOWNLOAD]
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--times", type=int, default=100, help="kills of each writer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20, help="writes of each of two")
    parser.add_argument("--writers", nargs="*", default=every, choices=every)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"seed {options.seed}")
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        # What lowering leaves in the folder for temporary files goes with the run.
        tempfile.tempdir = folder
        for name in options.writers:
            work = Path(folder, name)
            work.mkdir()
            checks = _downloads(work) if name == DOWNLOAD else _all(name, options, work)
            for row, found in checks:
                print(f"| {row} | {_text(found)} |", flush=True)
                broken += sum(found[t] for t in found if t.startswith("BROKEN"))
    print("nothing was lost" if not broken else f"{broken} broken")
    return int(broken > 0)


def _all(
    name: str, options: argparse.Namespace, work: Path
) -> Iterator[tuple[str, Counter[str]]]:
    """Every check of a writer, as soon as it is done: its row and what it found."""
    writer = WRITERS[name](work)
    checks = {
        "killed": lambda: campaign.kill(writer, options.times, options.seed, work),
        "full disk": lambda: places.full_disk(writer, work, (0, 300, 2000)),
        "read only": lambda: places.read_only(writer, work),
        "two writers": lambda: campaign.two_writers(writer, work, options.rounds),
    }
    for what, check in checks.items():
        yield f"{writer.name} | {what}", check()


def _downloads(work: Path) -> Iterator[tuple[str, Counter[str]]]:
    for how in INTERRUPTIONS:
        yield f"hub model | download {how}", interrupted(how, work)


def _text(found: Counter[str]) -> str:
    return ", ".join(f"{number} {text}" for text, number in found.items())


if __name__ == "__main__":
    sys.exit(main())
