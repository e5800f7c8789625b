"""Claims of the papers, on a network that learns scikit-learn's digits in seconds.

    python -m benchmarks.claims [--seeds 10]

A small residual network learns upright digits and is then adapted to another view of
them from 200 rows: a pixel further right, or a pixel further down. Asked are

- `adapt`: whether FineGates' gates adapt and not only prune (2412.12951), beside other
  choices of as many closed rows and columns, and beside methods that remove nothing;
- `selection`: whether S2FT is best on the smallest activations (2412.06289, table 4);
- `fusion`: whether adapters of two tasks disturb each other less when they train other
  channels (its table 5), by the accuracy that is lost by fusing both;
- `switching`: whether exchanging S2FT adapters gains on LoRA as matrices grow (its
  figure 6).

Everything trains with AdamW at 1e-2 for 100 epochs (FineGates published: 1e-3, which
would close nothing in so few steps). Accuracies of every seed stay in
benchmarks/results/claims.json, with the 95 % interval of each paired difference. A
claim holds where the interval is above 0.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import ttest_rel
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fgcompile
from benchmarks.glue.records import write_json
from benchmarks.machine import load_average, versions
from benchmarks.method_times import switch_times
from fgcompile import GateConfig, methods
from fgcompile.methods.s2ft_selection import Criterion

RESULTS = Path(__file__).parent / "results" / "claims.json"
SEEDS = 10
KNOWN, FEW, UNSEEN = slice(0, 900), slice(900, 1100), slice(1100, None)
"""Rows to learn from at first, to adapt with, and to score on."""

STEPS, BATCH, LR = 625, 32, 1e-2
WIDTH, HIDDEN = 48, 96
CHANNELS, FUSED = 0.25, 1 / 16
"""Of every hidden layer, in S2FT's adapters; and in those that are fused."""

WIDTHS = (256, 1024, 4096)
EXAMPLE = (torch.zeros(2, 64),)

CLAIMS = (
    *(("adapt", "learned", other) for other in ("closed alike", "smallest", "random")),
    *(("adapt", "learned", other) for other in ("head", "bitfit", "lora")),
    *(
        ("selection", "activation, small", other)
        for other in ("random", "activation, large", "weight, small", "gradient, small")
    ),
    ("fusion", "apart", "together"),
)
"""Which is said to be better than which."""


class Rows(NamedTuple):
    """Pictures `[rows 64]` and their digits `[rows]`."""

    x: Tensor
    y: Tensor

    def part(self, rows: slice) -> Rows:
        """Some of the rows."""
        return Rows(self.x[rows], self.y[rows])


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "upright": lambda pictures: pictures,
    "right": lambda pictures: pictures.roll(1, -1),
    "down": lambda pictures: pictures.roll(1, -2),
}


@cache
def digits(view: str) -> Rows:
    """All rows in one view, in the order of scikit-learn."""
    x, y = load_digits(return_X_y=True)
    pictures = torch.tensor(x, dtype=torch.float32).view(-1, 8, 8) / 16
    return Rows(VIEWS[view](pictures).flatten(1), torch.tensor(y))


class Block(nn.Module):
    """Adds what a hidden layer makes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.down(F.gelu(self.up(x)))


class Network(nn.Module):
    """From pictures to logits of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[rows 10]`."""
        return self.head(self.blocks(self.stem(x)))


def fit(model: Any, rows: Rows, seed: int) -> Any:
    """Trains what requires gradients, with the gates' term where there is one."""
    generator = torch.Generator().manual_seed(seed)
    gated = any("fgcompile_gates" in name for name, _ in model.named_parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LR, weight_decay=0.0)
    model.train()
    for _ in range(STEPS):
        chosen = torch.randint(len(rows.y), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(rows.x[chosen]), rows.y[chosen])
        optimizer.zero_grad()
        (loss + fgcompile.penalty(model) if gated else loss).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Any, view: str) -> float:
    """Of the rows that nothing was trained on."""
    rows = digits(view).part(UNSEEN)
    return float((model(rows.x).argmax(-1) == rows.y).float().mean())


def pretrained(seed: int) -> Network:
    """The network that knows upright digits."""
    torch.manual_seed(seed)
    model: Network = fit(Network(), digits("upright").part(KNOWN), seed)
    return model


# -- gates ---------------------------------------------------------------------------


def adapt(base: Network, seed: int) -> Iterator[tuple[str, float]]:
    """Accuracy on digits to the right, by method; all train the head."""
    few = digits("right").part(FEW)

    def score(model: Any, *trained: str) -> float:
        for name, parameter in model.named_parameters():
            wanted = ("head", *trained)
            parameter.requires_grad_(any(part in name for part in wanted))
        return accuracy(fit(model, few, seed), "right")

    learned = _gated(base, GateConfig.paper_finegates_glue(), seed)
    yield "learned", score(learned, "fgcompile_gates")
    gates = fgcompile.gates(learned)
    yield "removed", 1 - fgcompile.status(learned)["cost"]["params"]
    closed = {name: (~g.open).nonzero().flatten() for name, g in gates.items()}
    generator = torch.Generator().manual_seed(seed)
    orders = {
        "closed alike": closed,
        "smallest": {n: _sizes(base, n).argsort()[: len(c)] for n, c in closed.items()},
        "random": {
            name: torch.randperm(gates[name].size, generator=generator)[: len(c)]
            for name, c in closed.items()
        },
    }
    for method, units in orders.items():
        model = _gated(base, GateConfig(coupling="none", objective="none"), seed)
        for name, gate in fgcompile.gates(model).items():
            gate.close(units[name])
        yield method, score(model)
    yield "head", score(copy.deepcopy(base))
    yield "bitfit", score(copy.deepcopy(base), "bias")
    low_rank = methods.insert_low_rank(copy.deepcopy(base), 1, EXAMPLE)
    yield "lora", score(low_rank, "low_rank")


def _gated(base: Network, config: GateConfig, seed: int) -> Network:
    torch.manual_seed(seed)
    return fgcompile.insert_gates(copy.deepcopy(base), EXAMPLE, config)


def _sizes(base: Network, gate: str) -> Tensor:
    """Norms of the rows or columns behind a gate such as `blocks.0.up.rows`."""
    module, _, side = gate.rpartition(".")
    weight = base.get_submodule(module).get_parameter("weight").detach()
    return weight.norm(dim=1 if side == "rows" else 0)


# -- S2FT ----------------------------------------------------------------------------


def selection(base: Network, seed: int) -> Iterator[tuple[str, float]]:
    """Accuracy on digits to the right, by what S2FT selects its channels by."""
    config = methods.S2ftConfig(heads=0, channels=CHANNELS, seed=seed)
    yield "random", accuracy(_s2ft(base, "right", seed, config), "right")
    for by in get_args(Criterion):
        for largest in (False, True) if by != "random" else ():
            model = _s2ft(base, "right", seed, replace(config, by=by, largest=largest))
            name = f"{by}, {'large' if largest else 'small'}"
            yield name, accuracy(model, "right")


def _s2ft(base: Network, view: str, seed: int, config: methods.S2ftConfig) -> Any:
    """`base` with trained slices."""
    few = digits(view).part(FEW)
    model = methods.insert_s2ft(
        copy.deepcopy(base),
        config,
        EXAMPLE,
        calibration=[(few.x,)],
        loss=lambda logits: F.cross_entropy(logits, few.y),
    )
    return fit(model, few, seed)


def fusion(base: Network, seed: int) -> Iterator[tuple[str, float]]:
    """Minus what both tasks lose on average by fusing their adapters into one model."""
    config = methods.S2ftConfig(heads=0, channels=FUSED)
    first, same = (
        methods.extract_adapter(_s2ft(base, view, seed, config))
        for view in ("right", "down")
    )
    apart = replace(config, seed=_disjoint_from(base, config, first))
    other = methods.extract_adapter(_s2ft(base, "down", seed, apart))
    yield "together", _change(base, first, same)
    yield "apart", _change(base, first, other)


def _disjoint_from(
    base: Network, config: methods.S2ftConfig, adapter: methods.S2ftAdapter
) -> int:
    """A seed whose random selection has no channel of `adapter`."""
    for seed in range(1, 100):
        model = methods.insert_s2ft(
            copy.deepcopy(base), replace(config, seed=seed), EXAMPLE
        )
        found = methods.extract_adapter(model).entries
        if not any(
            torch.isin(entry.indices, found[key].indices).any()
            for key, entry in adapter.entries.items()
        ):
            return seed
    raise AssertionError("no seed selects other channels")


def _change(
    base: Network, right: methods.S2ftAdapter, down: methods.S2ftAdapter
) -> float:
    tasks = {"right": right, "down": down}
    both = copy.deepcopy(base)
    alone = 0.0
    for view, adapter in tasks.items():
        single = copy.deepcopy(base)
        methods.fuse(single, adapter)
        alone += accuracy(single, view)
        methods.fuse(both, adapter)
    return (sum(accuracy(both, view) for view in tasks) - alone) / len(tasks)


# -- all of them ---------------------------------------------------------------------


def measure(seeds: int) -> dict[str, Any]:
    """Accuracies by claim, method and seed; and what follows for the claims."""
    found: dict[str, Any] = defaultdict(lambda: defaultdict(list))
    for seed in track(range(seeds), "seeds", transient=True):
        base = pretrained(seed)
        for ask in (adapt, selection, fusion):
            for method, value in ask(base, seed):
                found[ask.__name__][method].append(value)
    return {name: dict(by_method) for name, by_method in found.items()}


def verdicts(accuracies: dict[str, Any]) -> list[dict[str, Any]]:
    """For each claim the mean difference and its interval, paired by seed."""
    rows = []
    for claim, better, worse in CLAIMS:
        values = accuracies[claim]
        test = ttest_rel(values[better], values[worse])
        low, high = (float(v) for v in test.confidence_interval(0.95))
        mean = sum(values[better]) / len(values[better])
        rows.append(
            {
                "claim": claim,
                "better": better,
                "than": worse,
                "difference": mean - sum(values[worse]) / len(values[worse]),
                "low": low,
                "high": high,
                "holds": low > 0,
            }
        )
    return rows


def shown(rows: list[dict[str, Any]]) -> Table:
    """The verdicts as a table, in points."""
    table = Table("claim", "better", "than", "by points", "95 %", "")
    for row in rows:
        low, difference, high = (100 * row[k] for k in ("low", "difference", "high"))
        word = "holds" if row["holds"] else "the opposite" if high < 0 else "open"
        interval = f"{low:+.1f} to {high:+.1f}"
        cells = (row["claim"], row["better"], row["than"], f"{difference:+.1f}")
        table.add_row(*cells, interval, word)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Measures, stores and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    accuracies = measure(options.seeds)
    rows = verdicts(accuracies)
    switching = [switch_times(width) for width in WIDTHS]
    found = {"versions": versions(), "load_average": load_average()}
    found |= {"accuracies": accuracies, "verdicts": rows, "switching": switching}
    write_json(options.results, found)
    Console().print(shown(rows))


if __name__ == "__main__":
    main()
