"""Whether a latency budget keeps its word: predicted and measured latency.

    python -m benchmarks.latency_budget --out latency.json
    python -m benchmarks.latency_budget --model small-bert --limit 0.6 --out smoke.json

For every model and limit: random weights, latencies measured as `insert_gates` does,
units closed as the budget chooses with random importance, and the lowered model and
the dense one run in ONNX Runtime in turns, by the wall clock (with `--undisturbed`, for
one thread on a busy machine, by the processor's time). Every case is a process of its
own, one after the other. Results are added to the file as they come; those that it has
are not measured again.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import fgcompile
from fgcompile.gates import container_of
from fgcompile.targets.latency.cache import machine
from fgcompile.targets.latency.files import onnx_latencies
from fgcompile.targets.onnx import write_onnx
from fgcompile.targets.timing import undisturbed_clock

LIMITS = (0.8, 0.6, 0.4)
TOLERANCE = 0.05
PACKAGES = ("fgcompile", "torch", "onnx", "onnxruntime", "onnxscript", "transformers")


def bert(**sizes: Any) -> nn.Module:
    """An encoder; without sizes BERT-base, 110 million parameters."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()


def llama(**sizes: Any) -> nn.Module:
    """A decoder with tied embeddings; without sizes Llama-3.2-1B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        **{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192},
        **{"num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "tie_word_embeddings": True, "use_cache": False},
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | sizes))).eval()


SMALL = {
    **{"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2},
    **{"num_attention_heads": 8, "vocab_size": 100},
}


def small_bert() -> nn.Module:
    """Two layers, for a smoke test."""
    return bert(**SMALL)


def small_llama() -> nn.Module:
    """Two layers, for a smoke test."""
    return llama(**SMALL, num_key_value_heads=4)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "BERT-base": bert,
    "Llama-3.2-1B": llama,
    "small-bert": small_bert,
    "small-llama": small_llama,
}
DEFAULT = ("BERT-base", "Llama-3.2-1B")


def close_by_budget(model: nn.Module, seed: int = 0) -> dict[str, int]:
    """Units kept by gate, as the budget of `model` chooses them at its end.

    Importance is random, and as large on average for what a unit costs in all groups.
    """
    container = container_of(model)
    objective: Any = container.objective
    generator = torch.Generator().manual_seed(seed)
    costs = objective.curves.unit_costs()
    for gate, cost in zip(container.each(), costs, strict=True):
        gate.importance.copy_(cost * torch.rand(gate.size, generator=generator))
    container.updates.fill_(objective.budget.begin + objective.budget.ramp)
    container.settle()
    return {name: int(gate.open.sum()) for name, gate in fgcompile.gates(model).items()}


def run_case(options: argparse.Namespace) -> dict[str, Any]:
    """Predicts and measures one model at one limit."""
    (name,), (limit,) = options.model, options.limit
    sizes = {key: getattr(options, key) for key in ("batch", "length", "threads")}
    torch.manual_seed(0)
    model = MODELS[name]()
    parameters = sum(p.numel() for p in model.parameters())
    start = time.perf_counter()
    table = fgcompile.measure_latency(model, **sizes)
    measuring = time.perf_counter() - start
    budget = fgcompile.Budget(latency=limit, measured=table, **sizes)
    with tempfile.TemporaryDirectory(prefix="fgcompile-") as folder:
        files = [Path(folder) / "dense.onnx", Path(folder) / "lowered.onnx"]
        # Programs, not lowered files: those would hold sessions, and memory.
        write_onnx(fgcompile.analyze(model).program, files[0])
        fgcompile.insert_gates(model, config=fgcompile.GateConfig(budget=budget))
        kept = close_by_budget(model)
        open_ = fgcompile.status(model)["open"]
        write_onnx(fgcompile.lower(model, verify=False).program, files[1])
        del model
        gc.collect()
        clock = undisturbed_clock(options.threads)
        dense, lowered = onnx_latencies(
            files,
            **sizes,
            seconds=options.seconds,
            clock=clock if options.undisturbed else time.perf_counter,
        )
    predicted, measured = table.predict(kept) / table.seconds, lowered / dense
    return {
        **{"model": name, "limit": limit, **sizes, "parameters": parameters},
        **{"predicted": predicted, "measured": measured},
        "error": measured / predicted - 1,
        **{"dense_seconds": dense, "lowered_seconds": lowered},
        **{"table_dense_seconds": table.seconds, "open": open_},
        "clock": "processor" if options.undisturbed else "wall",
        "seconds_to_measure": measuring,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the cases that the file does not have yet, each in its own process."""
    out: Path = options.out
    found = {"schema_version": 1, **environment(), "results": []}
    if out.exists():
        found = json.loads(out.read_text("utf-8"))
    key = ("model", "limit", "batch", "length", "threads")
    done = {tuple(result[k] for k in key) for result in found["results"]}
    sizes = [options.batch, options.length, options.threads]
    for name in options.model:
        for limit in options.limit:
            if (name, limit, *sizes) in done:
                continue
            found["results"].append(_in_process(options, name, limit))
            out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def _in_process(options: argparse.Namespace, name: str, limit: float) -> Any:
    command = [sys.executable, "-m", "benchmarks.latency_budget", "--case"]
    for key in ("batch", "length", "threads", "seconds"):
        command += [f"--{key}", str(getattr(options, key))]
    command += ["--model", name, "--limit", str(limit)]
    command += ["--undisturbed"] if options.undisturbed else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def table_of(found: dict[str, Any]) -> Table:
    """The results, one row per case."""
    rows = found["results"]
    shown = Table(title=f"Latency budgets, {found['machine']}", box=None)
    for heading in ("model", "rows x tokens", "limit", "predicted", "measured"):
        shown.add_column(heading)
    for heading in ("error", "dense ms", "lowered ms", "peak GB"):
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(
            *(row["model"], f"{row['batch']} x {row['length']}", f"{row['limit']:.2f}"),
            *(f"{row['predicted']:.3f}", f"{row['measured']:.3f}"),
            f"{row['error']:+.1%}",
            *(f"{1e3 * row[f'{w}_seconds']:.1f}" for w in ("dense", "lowered")),
            f"{row['peak_memory_bytes'] / 1e9:.1f}",
        )
    errors = [abs(row["error"]) for row in rows]
    shown.caption = (
        f"{sum(error <= TOLERANCE for error in errors)} of {len(rows)} within "
        f"{TOLERANCE:.0%}, median error {statistics.median(errors):.1%}"
    )
    return shown


def main() -> None:
    """Prints the table, and writes the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--limit", type=float, action="append")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--undisturbed", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("latency-budget.json"))
    parser.add_argument("--case", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.model = options.model or list(DEFAULT)
    options.limit = options.limit or list(LIMITS)
    if options.case:
        print(json.dumps(run_case(options)))
    else:
        Console().print(table_of(run_all(options)))


if __name__ == "__main__":
    main()
