"""Trains what is missing of the table, and writes one record a run.

    python -m benchmarks.glue --data-dir glue [--tasks mrpc,cola] [--rows full,lora]
    python -m benchmarks.glue --latency
    python -m benchmarks.glue --table docs/glue.md

A record appears when its run is complete, so a second call goes on where the first was
stopped. Weights and ONNX files stay in the work folder; `--latency` times the latter.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from torch import nn
from transformers import AutoModelForSequenceClassification

import fgcompile
from benchmarks.glue.choices import draw
from benchmarks.glue.data import TaskData, bundled_encoder
from benchmarks.glue.latency import relative
from benchmarks.glue.plan import Job, plan
from benchmarks.glue.records import RESULTS, read_records, write_json
from benchmarks.glue.rows import ROWS, full
from benchmarks.glue.table import markdown
from benchmarks.glue.training import Run
from examples import glue

logger = logging.getLogger("benchmarks.glue")

PACKAGES = ("torch", "transformers", "peft", "onnxruntime", "torch-pruning")


def main(arguments: list[str] | None = None) -> None:
    """Runs one phase."""
    options = _options(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    # Moments of tokens that no longer occur become denormal, which is slow.
    torch.set_flush_denormal(True)
    if options.table is not None:
        page = markdown(read_records(options.results))
        options.table.write_text(page, encoding="utf-8")
        draw(read_records(options.results), options.table.parent / "benchmarks")
        return
    if options.latency:
        time_files(options)
        return
    failed = [
        job.name for job in plan(options.tasks, options.rows) if not _done(job, options)
    ]
    if failed:
        raise SystemExit(f"These runs failed: {', '.join(failed)}")


def _done(job: Job, options: argparse.Namespace) -> bool:
    """Whether the record of `job` is there, after training it if it was not."""
    record = options.results / f"{job.name}.json"
    if record.exists():
        return True
    try:
        write_json(record, train(job, options))
    except Exception:
        # A run of hours must not end with the first method that fails.
        logger.exception("%s failed", job.name)
        return False
    return True


def time_files(options: argparse.Namespace) -> None:
    """Puts the latency into every record that lacks it and has its file."""
    models = options.work / "models"
    for record in read_records(options.results):
        if "latency" in record:
            continue
        pruned = models / f"{record['name']}.onnx"
        if not pruned.is_file():
            logger.warning("%s: %s is not there any more", record["name"], pruned)
            continue
        dense = models / f"{record['task']}-full-s0.onnx"
        if not dense.is_file():
            _write_dense(dense, glue.TASKS[record["task"]].labels, options)
        found = relative(dense, pruned, options.threads)
        file = options.results / f"{record.pop('name')}.json"
        write_json(file, record | {"latency": found})
        logger.info("%s: %.2f of dense", file.stem, found["relative"])


def _write_dense(file: Path, labels: int, options: argparse.Namespace) -> None:
    """The dense model before training, which takes as long as after it."""
    model = AutoModelForSequenceClassification.from_pretrained(
        options.encoder, num_labels=labels
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    fgcompile.lower(model.eval(), "onnx", file)


def train(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """The record of one job, trained from the start."""
    logger.info("%s", job.name)
    start = time.perf_counter()
    data = TaskData(job.task, options.data_dir, options.encoder, options.max_rows)
    run = Run(data, job.removed, job.seed, options.work, full, options.scale)
    row = ROWS[job.row]
    model = row.recipe(run).eval()
    file = options.work / "models" / f"{job.name}.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    lowered = fgcompile.lower(model, "onnx", file, quantization=row.quantization)
    small = lowered.program.graph_module
    dense = data.model()
    linear = {name: linear_parameters(m) for name, m in _pair(dense, small)}
    record = {
        **{"task": job.task, "row": job.row, "seed": job.seed},
        "removed_asked": job.removed,
        "metrics": data.score(lowered if row.quantization else model),
        "metrics_onnxruntime": data.score(lowered),
        "trainable": run.trainable,
        "parameters": {
            name: sum(p.numel() for p in m.parameters())
            for name, m in _pair(dense, small)
        },
        "encoder_linear": linear,
        "removed_share": 1 - linear["after"] / linear["before"],
        **run.notes,
        "stages": run.stages,
        "seconds": time.perf_counter() - start,
        "setting": _setting(),
    }
    logger.info("%s: %s", job.name, record["metrics"])
    return record


def _pair(before: nn.Module, after: nn.Module) -> list[tuple[str, nn.Module]]:
    return [("before", before), ("after", after)]


def linear_parameters(model: nn.Module) -> int:
    """Parameters in the weight matrices of the encoder's layers [count]."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".encoder." in f".{name}" and parameter.dim() == 2
    )


def _setting() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "flush_denormal": True,
        "python": platform.python_version(),
        **{
            package: version(package)
            for package in PACKAGES
            if find_spec(package.replace("-", "_"))
        },
    }


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.glue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = lambda text: tuple(text.split(","))  # noqa: E731
    parser.add_argument("--data-dir", type=Path, help="folders mrpc, cola, ... in it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("out") / "glue")
    parser.add_argument("--encoder", default=None, help="default: MiniLM's package")
    parser.add_argument("--tasks", type=names, default=None)
    parser.add_argument("--rows", type=names, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--latency", action="store_true", help="time what was trained")
    parser.add_argument("--table", type=Path, default=None, help="page to write")
    parser.add_argument("--max-rows", type=int, default=None, help="to try it out")
    parser.add_argument("--scale", type=float, default=1.0, help="of all epochs")
    options = parser.parse_args(arguments)
    trains = not (options.latency or options.table)
    if trains and options.data_dir is None:
        parser.error("--data-dir is needed to train")
    options.encoder = options.encoder or bundled_encoder()
    return options


if __name__ == "__main__":
    main()
