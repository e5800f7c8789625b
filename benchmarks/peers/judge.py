"""Whether a file computes what the masked model does, how small and how fast it is."""

from __future__ import annotations

import functools
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from benchmarks.cells import Result
from benchmarks.peers.models import heads_of, inputs_of
from fgcompile.targets.timing import interleaved_times, undisturbed_clock

EXACT = 1e-4
"""Largest difference that counts as rounding, relative to the largest output."""

SIZES = ((1, 7), (3, 24))
SECONDS = 10.0


def judge(masked: Any, facts: dict[str, Any], file: Path) -> Result:
    """How far the file is from the masked model, and what is gone."""
    session = _session(file)
    difference = largest = 0.0
    for batch, length in SIZES:
        inputs = inputs_of(masked, batch, length)
        with torch.no_grad():
            want = masked(**inputs).last_hidden_state.numpy()
        got = session.run(None, _feed(session, inputs))[0]
        difference = max(difference, float(np.abs(want - got).max()))
        largest = max(largest, float(np.abs(want).max()))
    dense = sum(p.numel() for p in masked.parameters())
    left = _weights(file)
    return {
        "difference": difference,
        "exact": difference <= EXACT * largest,
        "parameters": left,
        "removed": dense - left,
        "removable": removable_parameters(masked, facts),
        "megabytes_of_file": megabytes(file),
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
    graph = onnx.load(str(file), load_external_data=False).graph
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
    return sum(math.prod(t.dims) for t in graph.initializer if t.data_type in floats)


def megabytes(file: Path) -> float:
    """Of an ONNX file and of those beside it that its weights are in."""
    graph = onnx.load(str(file), load_external_data=False).graph
    beside = {
        file.parent / entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return round(sum(f.stat().st_size for f in {file, *beside}) / 1e6, 1)


def latencies(dense: Path, ours: Path, pruned: Path, model: Any) -> Result:
    """Median times of one row of 128 tokens, or one picture, in turns.

    Args:
        dense: The model before pruning, as torch exports it.
        ours: The same, as fgcompile does.
        pruned: The file that is judged.
        model: Says what its inputs look like.
    """
    inputs = inputs_of(model, 1, 128)
    calls = []
    for file in (dense, ours, pruned):
        session = _session(file)
        calls.append(functools.partial(session.run, None, _feed(session, inputs)))
    times = interleaved_times(calls, SECONDS, clock=undisturbed_clock(1))
    names = ("dense_milliseconds", "our_dense_milliseconds", "milliseconds")
    return {
        name: round(1000 * statistics.median(found), 3)
        for name, found in zip(names, times, strict=True)
    } | {
        "latency_ratio": _ratio(times[2], times[0]),
        "latency_ratio_to_ours": _ratio(times[2], times[1]),
    }


def _ratio(times: list[float], dense: list[float]) -> float:
    turns = [one / other for one, other in zip(times, dense, strict=True)]
    return round(statistics.median(turns), 4)


def _feed(session: onnxruntime.InferenceSession, inputs: dict[str, Any]) -> Any:
    """Inputs by position: exporters name them as they like."""
    pairs = zip(session.get_inputs(), inputs.values(), strict=False)
    return {value.name: tensor.numpy() for value, tensor in pairs}


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(file), options, providers=providers)
