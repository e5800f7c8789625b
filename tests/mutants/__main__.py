"""Breaks the compiler on purpose and prints what notices: `python -m tests.mutants`.

    python -m tests.mutants [PART_OF_A_NAME ...] [--markdown docs/mutants.md]

Takes a few minutes; the exit status is 1 if a mutant lives.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from fgcompile.capture.state import silence
from tests.mutants.every import MUTANTS
from tests.mutants.page import line, page
from tests.mutants.run import run


def main() -> int:
    """Runs the chosen mutants; 1 if one lives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("names", nargs="*", help="parts of names; all by default")
    parser.add_argument("--markdown", type=Path, help="page to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for mutant in MUTANTS:
        if options.names and not any(part in mutant.name for part in options.names):
            continue
        with silence():
            outcome = run(mutant)
        results.append((mutant, outcome))
        print(line(mutant, outcome), flush=True)
    dead = sum(outcome.killed for _, outcome in results)
    print(f"{dead} of {len(results)} mutants were noticed, and nothing was written")
    if options.markdown is not None:
        options.markdown.write_text(page(results), encoding="utf-8")
    return 0 if dead == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
