"""Prunes a model with every tool in turns, and judges what each leaves."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import Result
from benchmarks.peers.environments import folder_for, installed, interpreter
from benchmarks.peers.judge import judge, latencies
from benchmarks.peers.models import build, export, inputs_of, zero_half
from benchmarks.peers.rows import Row, rows_for
from benchmarks.runner import call, failure
from fgcompile import lower

TIMED = ("seconds", "process_seconds", "megabytes")
"""What each run measures, of which medians count."""


def compare(model: str, small: bool, rounds: int) -> Result:
    """All tools on one model, each `rounds` times in a process of its own, in turns.

    A failure of a peer is a result, with its message. What fails once is not run again.

    Raises:
        RuntimeError: If our own run fails or takes too long, which is no result.
    """
    torch.set_num_threads(1)
    folder = folder_for(f"work-{model}")
    masked = build(model, small)
    facts: dict[str, Any] = {"model": model, "small": small}
    facts["kept"] = zero_half(masked, model)
    rows = rows_for(model, small)
    for row in rows:
        work = _work(folder, row)
        work.mkdir()
        (work / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    found: Result = {row.name: _start(row) for row in rows}
    for _ in range(rounds):
        for row in rows:
            if found[row.name]["runs"]:
                _run(row, model, _work(folder, row), found[row.name])
    _dense_files(build(model, small), folder)
    for row in rows:
        _judge(masked, facts, _work(folder, row), found[row.name])
    shutil.rmtree(folder)
    return {"threads": 1, "rounds": rounds, "rows": found}


def _work(folder: Path, row: Row) -> Path:
    return folder / row.name.replace(" ", "-").replace(",", "")


def _start(row: Row) -> Result:
    version = installed(interpreter(row.peer), row.peer)
    return {"version": version, "runs": True, "each": {name: [] for name in TIMED}}


def _run(row: Row, model: str, work: Path, found: Result) -> None:
    """One process; what it measured, or its message, goes into `found`."""
    python, options = interpreter(row.peer), json.dumps(row.options)
    worker = "benchmarks.peers.worker"
    command = [python, "-m", worker, row.module, str(work), options]
    log, limit = work / "log", row.limit(model)
    code = call(command, log, limit)
    if code == 0:
        told = json.loads((work / "result.json").read_text(encoding="utf-8"))
        for name in TIMED:
            found["each"][name].append(told[name])
            found[name] = statistics.median(found["each"][name])
        found["note"] = told["note"]
        return
    message = failure(code, log, limit).replace(str(work), "")
    if row.ours:
        raise RuntimeError(f"{row.name} on {model}: {message}")
    found |= {"runs": False, "message": message}


def _dense_files(model: Any, folder: Path) -> None:
    """The model before pruning, as torch exports it and as we do."""
    export(model, folder / "torch.onnx")
    inputs = inputs_of(model, 2, 16)
    lower(model, "onnx", folder / "ours.onnx", example_inputs=inputs, verify=False)


def _judge(masked: Any, facts: dict[str, Any], work: Path, found: Result) -> None:
    file = work / "model.onnx"
    if not found["runs"]:
        return
    try:
        found |= judge(masked, facts, file)
    except Exception as error:
        text = str(error).strip().partition("\n")[0][:300].replace(str(work), "")
        message = f"its file does not run: {type(error).__name__}: {text}"
        found |= {"runs": False, "message": message}
        return
    dense, ours = (work.parent / name for name in ("torch.onnx", "ours.onnx"))
    found |= latencies(dense, ours, file, masked)


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], True, 1), indent=1))
