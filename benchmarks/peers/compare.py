"""Prunes a model with a peer, and says whether the result is right, small and fast."""

from __future__ import annotations

import functools
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from benchmarks.cells import Result
from benchmarks.peers.environments import PEERS, folder_for, installed, interpreter
from benchmarks.peers.models import (
    build,
    export,
    heads_of,
    inputs_of,
    zero_half,
)
from benchmarks.runner import call, failure
from fgcompile.targets.timing import interleaved_times, undisturbed_clock

LIMIT, PATIENCE = 120.0, 600.0
"""When a peer is given up [s]; on a tiny model, which is no measurement, later."""

EXACT = 1e-4
"""Largest difference that counts as rounding, relative to the largest output."""

SIZES = ((1, 7), (3, 24))
SECONDS = 10.0
MODULES = {peer: f"with_{peer.replace('-', '_').replace('.', '_')}" for peer in PEERS}


def compare(model: str, peer: str, small: bool) -> Result:
    """One model and peer; a failure of the peer is a result, with its message."""
    torch.set_num_threads(1)
    python = interpreter(peer)
    folder = folder_for(f"work-{model}-{peer}")
    masked, facts = _prepare(folder, model, small)
    command = [python, "-m", "benchmarks.peers.worker", MODULES[peer], str(folder)]
    log = folder / "log"
    limit = PATIENCE if small else LIMIT
    code = call(command, log, limit)
    result: Result = {"version": installed(python, peer), "runs": code == 0}
    if code != 0:
        message = failure(code, log, limit).replace(str(folder), "")
        return result | {"message": message}
    result |= json.loads((folder / "result.json").read_text(encoding="utf-8"))
    file = folder / "model.onnx"
    try:
        result |= _judge(masked, facts, file)
    except Exception as error:
        text = str(error).strip().partition("\n")[0][:300]
        message = f"its file does not run: {type(error).__name__}: {text}"
        return result | {"runs": False, "message": message.replace(str(folder), "")}
    export(build(model, small), folder / "dense.onnx")
    return result | _latency(folder / "dense.onnx", file, masked)


def _prepare(folder: Path, model: str, small: bool) -> tuple[Any, dict[str, Any]]:
    """The model whose zeros are to go, and facts that peers and judges need."""
    masked = build(model, small)
    facts: dict[str, Any] = {"model": model, "small": small}
    facts["kept"] = zero_half(masked, model)
    text = json.dumps(facts)
    (folder / "facts.json").write_text(text, encoding="utf-8")
    return masked, facts


def _judge(masked: Any, facts: dict[str, Any], file: Path) -> Result:
    """How far the file is from the masked model, and what is gone."""
    session = _session(file)
    difference = largest = 0.0
    for batch, length in SIZES:
        inputs = inputs_of(masked, batch, length)
        with torch.no_grad():
            want = masked(**inputs).last_hidden_state.numpy()
        feed = {
            value.name: tensor.numpy()
            for value, tensor in zip(
                session.get_inputs(), inputs.values(), strict=False
            )
        }
        got = session.run(None, feed)[0]
        difference = max(difference, float(np.abs(want - got).max()))
        largest = max(largest, float(np.abs(want).max()))
    dense = sum(p.numel() for p in masked.parameters())
    removable = removable_parameters(masked, facts)
    left = _weights(file)
    return {
        "difference": difference,
        "exact": difference <= EXACT * largest,
        "parameters": left,
        "removed": dense - left,
        "removable": removable,
        "megabytes_of_file": round(file.stat().st_size / 1e6, 1),
    }


def removable_parameters(masked: Any, facts: dict[str, Any]) -> int:
    """Parameters that belong to what is zero [count]."""
    heads, kv, size = heads_of(masked)
    width, inner = masked.config.hidden_size, _inner(masked)
    llama = facts["model"] == "llama"
    ups, row = (2, width) if llama else (1, width + 1)  # rows have biases, or not
    total, kept = 0, facts["kept"]
    for channels, groups in zip(kept["channels"], kept["heads"], strict=True):
        total += (inner - len(channels)) * (ups * row + width)
        key = (kv - len(groups)) * size
        query = key * (heads // kv)
        total += (query + 2 * key) * row + query * width
    return total


def _inner(model: Any) -> int:
    return int(getattr(model.config, "n_inner", 0) or model.config.intermediate_size)


def _weights(file: Path) -> int:
    """Numbers in the floating-point initializers of a file [count]."""
    graph = onnx.load(str(file)).graph
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
    return sum(math.prod(t.dims) for t in graph.initializer if t.data_type in floats)


def _latency(dense: Path, pruned: Path, model: Any) -> Result:
    """Median times of one row of 128 tokens, or one picture, in turns."""
    inputs = inputs_of(model, 1, 128)
    calls = []
    for file in (dense, pruned):
        session = _session(file)
        feed = {
            value.name: tensor.numpy()
            for value, tensor in zip(
                session.get_inputs(), inputs.values(), strict=False
            )
        }
        calls.append(functools.partial(session.run, None, feed))
    times = interleaved_times(calls, SECONDS, clock=undisturbed_clock(1))
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return {
        "dense_milliseconds": round(1000 * statistics.median(times[0]), 3),
        "milliseconds": round(1000 * statistics.median(times[1]), 3),
        "latency_ratio": round(statistics.median(ratios), 4),
    }


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(file), options, providers=providers)


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], sys.argv[2], True), indent=1))
