"""What a training step costs under every method, side by side on one model.

    python -m benchmarks.training_cost [--seconds 120]

Times are medians of whole steps (forward, backward, AdamW), in turns on one thread, of
all-MiniLM-L6-v2 with a classifier on random tokens. Memory is the peak of a process of
its own that does a few steps, above what it holds before the first. Gates are to be
compared with the row that trains the same weights without them. Figures are kept in
benchmarks/results; `python -m benchmarks.doc_tables` puts them into docs/methods.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig
from transformers import BertForSequenceClassification as Bert
from transformers.utils import logging as transformers_logging

import fgcompile
from benchmarks import record
from benchmarks.machine import peak_memory
from examples.embeddings import minilm_folder
from fgcompile import Budget, GateConfig, methods
from fgcompile.targets.timing import median_times, undisturbed_clock

HEAD = ("classifier", "pooler")
STEPS = 5
SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 64,
}


def dense(small: bool) -> Any:
    """The model that every row starts from; a tiny one to try the script out."""
    torch.manual_seed(0)
    if small:
        return Bert(BertConfig(vocab_size=1000, **SMALL))
    return AutoModelForSequenceClassification.from_pretrained(minilm_folder())


def frozen(model: nn.Module) -> nn.Module:
    """Only biases, head and gates are trained."""
    for name, parameter in model.named_parameters():
        kept = "bias" in name or "fgcompile" in name or any(h in name for h in HEAD)
        parameter.requires_grad_(kept)
    return model


def gated(model: nn.Module) -> nn.Module:
    """Shared gates with a budget of one half."""
    budget = Budget(params=0.5, steps=1_000_000)  # no unit closes while it is timed
    return fgcompile.insert_gates(model, config=GateConfig(budget=budget))


def published(model: nn.Module) -> nn.Module:
    """FineGates as published."""
    return fgcompile.insert_gates(model, config=GateConfig.paper_finegates_glue())


def lora(model: nn.Module) -> Any:
    """LoRA of `peft`, rank 8, on every matrix of the blocks."""
    from peft import LoraConfig, get_peft_model

    targets = ["query", "key", "value", "dense"]
    config = LoraConfig(
        r=8, target_modules=targets, exclude_modules=["bert.pooler.dense"]
    )
    return get_peft_model(model, config)


def lora_gated(model: nn.Module) -> Any:
    """The same with shared gates, which get a learning rate as adapters do."""
    adapted = lora(model)
    gated(adapted.get_base_model())
    return adapted


def s2ft(model: nn.Module) -> nn.Module:
    """A twelfth of the heads and a twentieth of the channels."""
    return methods.insert_s2ft(model, methods.S2ftConfig(heads=1 / 12, channels=1 / 20))


ROWS: dict[str, tuple[Callable[[nn.Module], Any], str | None]] = {
    "all weights": (lambda model: model, None),
    "all weights, gates": (gated, "all weights"),
    "biases": (frozen, None),
    "biases, gates": (lambda model: frozen(gated(model)), "biases"),
    "biases, gates as published": (lambda model: frozen(published(model)), "biases"),
    "LoRA": (lora, None),
    "LoRA, gates": (lora_gated, "LoRA"),
    "S2FT": (s2ft, None),
}
"""What is trained, and the row that trains the same without gates."""


def step_of(model: nn.Module, batch: int, length: int) -> Callable[[], None]:
    """One training step of `model` on rows that stay the same."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-6)
    ids = torch.randint(0, 1000, (batch, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.randint(0, 2, (batch,))
    model.train()

    def step() -> None:
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def memory_of(row: str, options: argparse.Namespace) -> int:
    """Bytes that a few steps of `row` take at most, in a process of its own."""
    code = (
        "from benchmarks import training_cost as t; "
        f"print(t.steps_in_this_process({row!r}, {options.small}, {options.batch}, "
        f"{options.length}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def steps_in_this_process(row: str, small: bool, batch: int, length: int) -> int:
    """Bytes by which a few steps raise the peak of this process."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    step_of(dense(small=True), 2, 8)()  # what is loaded late is no step's memory
    step = step_of(ROWS[row][0](dense(small)), batch, length)
    with peak_memory() as peak:
        for _ in range(STEPS):
            step()
    return peak.more


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a row, in the order of ROWS."""
    models = {row: make(dense(options.small)) for row, (make, _) in ROWS.items()}
    steps = [step_of(m, options.batch, options.length) for m in models.values()]
    medians = median_times(steps, options.seconds, undisturbed_clock(1))
    times = dict(zip(ROWS, medians, strict=True))
    return [
        {
            "row": row,
            "step_ms": 1000 * times[row],
            "over_same_without_gates": times[row] / times[plain] if plain else None,
            "peak_mb": memory_of(row, options) / 1e6,
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        for (row, model), (_, plain) in zip(models.items(), ROWS.values(), strict=True)
    ]


def show(records: list[dict[str, Any]]) -> Table:
    """The records as a table."""
    table = Table("trained", "step", "of the same", "peak", "parameters")
    for found in records:
        ratio = found["over_same_without_gates"]
        table.add_row(
            found["row"],
            f"{found['step_ms']:.1f} ms",
            "" if ratio is None else f"{ratio:.3f}",
            f"{found['peak_mb']:.0f} MB",
            f"{found['trained']:,}",
        )
    return table


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and keeps the figures."""
    options = parsed(arguments)
    torch.set_num_threads(1)
    # Moments of tokens that never occur are denormal, which costs more than the step.
    torch.set_flush_denormal(True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    records = measure(options)
    if not options.small:
        setting = {"batch": options.batch, "length": options.length}
        record.write("training-cost", {"records": records} | setting, threads=1)
    Console().print(show(records))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """What `arguments` say, those of the command line by default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument(
        "--small", action="store_true", help="a tiny model, to try it; keeps nothing"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
