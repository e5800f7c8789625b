"""Lowers a synthetic checkpoint of several gigabytes, and watches the memory.

    python -m benchmarks.large_checkpoint --gigabytes 6

A Llama-shaped checkpoint of random bfloat16 numbers is written in shards, half of its
heads and channels are closed, and `fgcompile lower --target module` runs in a process
of its own. With `--kill`, a first run is killed half-way.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.record import write
from fgcompile import GateConfig, gates, insert_gates, save_gates
from fgcompile.checkpoint.streaming.shards import write_shards
from fgcompile.checkpoint.streaming.standin import skeleton

RESULT = "large-checkpoint"


def main(
    gigabytes: Annotated[float, typer.Option(help="Size of the checkpoint.")] = 6.0,
    folder: Annotated[
        Path | None, typer.Option(help="Where to work; temporary by default.")
    ] = None,
    kill: Annotated[bool, typer.Option(help="Kill a first run half-way.")] = False,
) -> None:
    """Writes time, peak memory and sizes as JSON, and prints them."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        config = _config(gigabytes)
        largest = _write_checkpoint(work / "dense", config)
        _write_gates(work / "gates", config)
        command = [
            *(sys.executable, "-m", "fgcompile.cli", "lower", str(work / "dense")),
            *("--gates", str(work / "gates"), "--target", "module"),
            *("--out", str(work / "small"), "--report", str(work / "report.txt")),
        ]
        killed = _kill_half_way(command, work) if kill else None
        start = time.perf_counter()
        peak = _peak(command)
        result: dict[str, Any] = {
            "checkpoint_gb": round(_size(work / "dense") / 1e9, 2),
            "lowered_gb": round(_size(work / "small") / 1e9, 2),
            "largest_tensor_gb": round(largest / 1e9, 3),
            "limit_gb": round(2 + 2 * largest / 1e9, 2),
            "peak_gb": round(peak / 1e9, 2),
            "seconds": round(time.perf_counter() - start),
        }
        if killed is not None:
            result["left_by_the_killed_run"] = killed
        write(RESULT, result)
        print(json.dumps(result, indent=1))


def _config(gigabytes: float) -> LlamaConfig:
    shape: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    }
    layer = 2048 * 2048 * 2 + 2 * 2048 * 512 + 3 * 2048 * 8192
    layers = max(1, round((gigabytes * 1e9 / 2 - 32000 * 2048) / layer))
    return LlamaConfig(num_hidden_layers=layers, dtype="bfloat16", **shape)


def _write_checkpoint(folder: Path, config: LlamaConfig) -> int:
    """Bytes of the largest tensor."""
    folder.mkdir()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    model = skeleton(LlamaForCausalLM, config)
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, shape in shapes.items():
            scale = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
            yield name, torch.randn(shape, dtype=torch.bfloat16) * scale

    write_shards(folder, tensors())
    return max(shape.numel() for shape in shapes.values()) * 2


def _write_gates(folder: Path, config: LlamaConfig) -> None:
    model = insert_gates(
        skeleton(LlamaForCausalLM, config), config=GateConfig(kinds=("mlp", "head"))
    )
    torch.manual_seed(0)
    for gate in gates(model).values():
        gate.close(torch.randperm(gate.size)[: gate.size // 2])
    save_gates(model, folder)


def _peak(command: list[str]) -> int:
    """Bytes that a process had in memory at most, with the pages of mapped files.

    The kernel's own count for children starts with what the parent had.
    """
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        peak = max(peak, int(found[1]) * 1024 if found else 0)
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak


def _kill_half_way(command: list[str], work: Path) -> list[str]:
    """What lies in the output's place after a kill while shards are written."""
    process = subprocess.Popen(command)
    while process.poll() is None and not list(work.glob(".fgcompile-*/part-1")):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return sorted(file.name for file in work.glob("small/*"))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    typer.run(main)
