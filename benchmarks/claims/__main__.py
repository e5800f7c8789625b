"""Claims of the papers, on a network that learns scikit-learn's digits in seconds.

    python -m benchmarks.claims [--seeds 5]

A small residual network learns upright digits and is then adapted to another view of
them from 200 rows: a pixel further right, or a pixel further down. Asked are

- `adapt`: whether FineGates' gates adapt and not only prune (2412.12951), beside other
  choices of as many closed rows and columns, and beside methods that remove nothing;
- `selection`: whether S2FT is best on the smallest activations (2412.06289, table 4);
- `fusion`: whether adapters of two tasks disturb each other less when they train other
  channels (its table 5), by the accuracy that is lost by fusing both.

Everything trains with AdamW at 1e-2 for 100 epochs (FineGates published: 1e-3, which
would close nothing in so few steps). Accuracies of every seed stay in
benchmarks/results/claims.json, with the 95 % interval of each paired difference. A
claim holds where the interval is above 0.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.claims.gates import adapt
from benchmarks.claims.network import pretrained
from benchmarks.claims.s2ft import fusion, selection
from benchmarks.claims.verdicts import page, verdicts
from benchmarks.glue.records import write_json
from benchmarks.machine import ROOT, versions

RESULTS = ROOT / "benchmarks" / "results" / "claims.json"
PAGE = ROOT / "docs" / "claims.md"
SEEDS = 5


def measure(seeds: int) -> dict[str, Any]:
    """Accuracies by claim, method and seed; and what follows for the claims."""
    found: dict[str, Any] = defaultdict(lambda: defaultdict(list))
    for seed in track(range(seeds), "seeds", transient=True):
        base = pretrained(seed)
        for ask in (adapt, selection, fusion):
            for method, value in ask(base, seed):
                found[ask.__name__][method].append(value)
    return {name: dict(by_method) for name, by_method in found.items()}


def main(arguments: list[str] | None = None) -> None:
    """Measures, stores and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    accuracies = measure(options.seeds)
    rows = verdicts(accuracies)
    found = {"versions": versions(), "accuracies": accuracies, "verdicts": rows}
    write_json(options.results, found)
    options.page.write_text(page(found), encoding="utf-8")
    print(options.page)


if __name__ == "__main__":
    main()
