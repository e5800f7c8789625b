"""Memory of a process that lowers many models, beside one that only exports them.

    python -m benchmarks.load [--models 200] [--target fx]

Each of the two runs in a process of its own and works on the same models: MLPs,
convolutions, attention and BERTs of different sizes, with half of their units closed.
The slope is that of a line through the resident memory after a warm-up of a quarter of
the models; `torch.export` alone has one too, as its caches grow with every new graph.
Memory is flat if lowering adds at most `EXTRA` to it and keeps no objects of its own;
the exit status is 1 if it is not.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from fgcompile import GateConfig, gates, insert_gates, lower
from fgcompile.zoo.plain import AttentionBlock

PAGE = resource.getpagesize()
EXTRA = 500.0
"""Growth per model that may come on top of torch.export's own [KiB].

About a quarter of what there is comes from torch.fx, which keeps the source of every
GraphModule for tracebacks. A trace that is kept takes about twice as much as this.
"""
EXTRA_OBJECTS = 200.0
"""The same for Python objects: a program that is kept has thousands."""


@dataclass(frozen=True)
class Growth:
    """Resident memory of a process over its models.

    Attributes:
        models: Number of models.
        first: After the warm-up [MiB].
        last: At the end [MiB].
        slope: Growth per model after the warm-up [KiB].
        objects: Growth of the number of Python objects per model, after the warm-up.
        seconds: Wall time of all models [s].
    """

    models: int
    first: float
    last: float
    slope: float
    objects: float
    seconds: float


def models() -> Iterator[tuple[nn.Module, tuple[Tensor, ...], str]]:
    """Models without end, of ever new sizes, with inputs and a kind of group."""
    number = 0
    while True:
        size = 8 + 2 * (number // 4 % 20)
        if number % 4 == 0:
            layers = (nn.Linear(6, size), nn.GELU(), nn.Linear(size, 3))
            yield nn.Sequential(*layers).eval(), (torch.randn(2, 6),), "mlp"
        elif number % 4 == 1:
            convolutions = (nn.Conv2d(3, size, 3), nn.ReLU(), nn.Conv2d(size, 4, 3))
            image = torch.randn(2, 3, 9, 9)
            yield nn.Sequential(*convolutions).eval(), (image,), "conv"
        elif number % 4 == 2:
            block = AttentionBlock(16, 4, size).eval()
            yield block, (torch.randn(2, 5, 16),), "head"
        else:
            yield _bert(size), (torch.randint(0, 30, (2, 5)),), "mlp"
        number += 1


def _bert(hidden: int) -> nn.Module:
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=hidden,
        max_position_embeddings=8,
    )
    model: nn.Module = BertModel(config, add_pooling_layer=False)
    return model.eval()


def work(count: int, verb: str, target: str) -> Growth:
    """Exports or lowers `count` models in this process; "keep" lowers with a leak."""
    torch.set_num_threads(1)
    memory, objects, start = [], [], time.perf_counter()
    kept = []
    for _, (model, inputs, kind) in zip(range(count), models(), strict=False):
        if verb == "export":
            torch.export.export(model, inputs, strict=False)
        else:
            lowered = _lower(model, inputs, kind, target)
            kept += [lowered] if verb == "keep" else []
            del lowered
        gc.collect()
        memory.append(_resident())
        objects.append(len(gc.get_objects()))
    warm = count // 4
    return Growth(
        count,
        memory[warm] / 2**20,
        memory[-1] / 2**20,
        _slope(memory[warm:]) / 2**10,
        _slope(objects[warm:]),
        time.perf_counter() - start,
    )


def _lower(model: nn.Module, inputs: tuple[Tensor, ...], kind: Any, target: Any) -> Any:
    insert_gates(model, inputs, GateConfig(kinds=(kind,)))
    for gate in gates(model).values():
        gate.close(list(range(0, gate.size, 2)))
    return lower(model, target)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _slope(values: list[int]) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def measure(count: int, verb: str, target: str = "fx") -> Growth:
    """What `work` returns, from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.load", "--models", str(count)]
    command += ["--verb", verb, "--target", target]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return Growth(**json.loads(done.stdout.splitlines()[-1]))


def faults(ours: Growth, torchs: Growth) -> list[str]:
    """In what lowering is not flat beside exporting; nothing if it is."""
    limits = (
        ("KiB", ours.slope, torchs.slope, EXTRA),
        ("objects", ours.objects, torchs.objects, EXTRA_OBJECTS),
    )
    return [
        f"not flat: {mine:.1f} {unit} per model, torch.export {its:.1f}, "
        f"allowed are {extra:g} more"
        for unit, mine, its, extra in limits
        if mine > max(its, 0) + extra
    ]


def main() -> int:
    """Prints the growth of both, or works as one of them; 1 if memory is not flat."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--target", default="fx")
    parser.add_argument("--verb", choices=["lower", "export", "keep"])
    options = parser.parse_args()
    if options.verb is not None:
        growth = work(options.models, options.verb, options.target)
        print(json.dumps(asdict(growth)))
        return 0
    table = Table("", *(name for name in Growth.__annotations__))
    found = {}
    for verb in ("export", "lower"):
        found[verb] = measure(options.models, verb, options.target)
        table.add_row(verb, *(f"{value:.4g}" for value in asdict(found[verb]).values()))
    Console().print(table)
    wrong = faults(found["lower"], found["export"])
    print("\n".join(wrong) or "memory is flat")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
