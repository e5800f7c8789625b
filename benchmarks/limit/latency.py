"""How long dense and pruned models take in onnxruntime, in turns."""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.cells import Result
from benchmarks.limit.build import Built, built
from fgcompile.targets.timing import interleaved_times, undisturbed_clock

SECONDS = 10.0
LEAST = 5
LIMITS = {"llama-1b": 1.08}
LIMIT = 1.05
"""Latency ratio over MAC ratio, above which a profile is taken."""

_FEW = 20_000_000_000
"""MACs of one run from which it is measured three times only."""

Feed = dict[str, np.ndarray[Any, Any]]


def latencies(
    model: str, removed: int, batch: int, tokens: int, threads: int
) -> Result:
    """Times of all variants, their ratios to the dense one, and where time is lost."""
    variants = ["dense", "shared", "finegates"]
    if removed == 40 and model != "llama-1b":
        variants.append("gathers")
    files = {name: built(model, name, removed) for name in variants}
    times = _times(files, batch, tokens, threads)
    dense = times["dense"]
    found: Result = {"threads": threads, "turns": len(dense), "variants": {}}
    for name in variants:
        found["variants"][name] = _facts(files, name, tokens) | {
            "milliseconds": round(1000 * statistics.median(times[name]), 3),
            "ratio": _ratio(times[name], dense),
        }
    shared = found["variants"]["shared"]
    found["over"] = shared["ratio"] / shared["mac_ratio"]
    if found["over"] > LIMITS.get(model, LIMIT):
        pair = {name: files[name] for name in ("dense", "shared")}
        found["profile"] = profiles(pair, batch, tokens, threads)
    return found


def _times(
    files: dict[str, Built], batch: int, tokens: int, threads: int
) -> dict[str, list[float]]:
    calls = [_call(Path(f.file), batch, tokens, threads) for f in files.values()]
    many = batch * files["dense"].macs[str(tokens)] > _FEW
    least, warm_up = (3, 1) if many else (LEAST, 2)
    clock = undisturbed_clock(threads)
    times = interleaved_times(calls, SECONDS, least, warm_up, clock)
    return dict(zip(files, times, strict=True))


def _ratio(times: list[float], dense: list[float]) -> float:
    """Median over the turns; what slows a whole turn down cancels."""
    turns = [one / other for one, other in zip(times, dense, strict=True)]
    return round(statistics.median(turns), 4)


def _facts(files: dict[str, Built], name: str, tokens: int) -> Result:
    one, dense = files[name], files["dense"]
    macs = dense.macs[str(tokens)]
    found = {
        "parameters": one.parameters,
        "mac_ratio": round(one.macs[str(tokens)] / macs, 4),
        "counted": round(one.counted, 4),
    }
    if one.matrices:
        # Every token meets every entry of a matrix once.
        promised = macs - tokens * (1 - one.counted) * one.matrices
        found["promised_mac_ratio"] = round(promised / macs, 4)
    return found


def _call(
    file: Path, batch: int, tokens: int, threads: int, profile: Path | None = None
) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    call = functools.partial(session.run, None, feed(session, batch, tokens))
    return call if profile is None else (call, session)


def feed(session: onnxruntime.InferenceSession, batch: int, tokens: int) -> Feed:
    """Tokens, full masks or random pictures."""
    random = np.random.default_rng(0)
    found: Feed = {}
    for each in session.get_inputs():
        free = iter((batch, tokens))
        shape = [n if isinstance(n, int) else next(free) for n in each.shape]
        if each.type == "tensor(float)":
            found[each.name] = random.standard_normal(shape, np.float32)
        elif each.name == "input_ids":
            found[each.name] = random.integers(0, 100, shape)
        else:
            found[each.name] = np.full(shape, int("mask" in each.name))
    return found


def profiles(
    files: dict[str, Built], batch: int, tokens: int, threads: int, runs: int = 5
) -> dict[str, dict[str, float]]:
    """Milliseconds of one run by operator type, for each file; medians."""
    found = {}
    for name, one in files.items():
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder) / "profile"
            call, session = _call(Path(one.file), batch, tokens, threads, prefix)
            found[name] = _by_operator(call, session, runs)
    return found


def _by_operator(
    call: Callable[[], object], session: onnxruntime.InferenceSession, runs: int
) -> dict[str, float]:
    for _ in range(runs + 1):
        call()
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [
        event
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    each = len(nodes) // (runs + 1)
    totals: dict[str, list[float]] = {}
    for run in range(1, runs + 1):  # the first one warms up
        for event in nodes[run * each : (run + 1) * each]:
            own = totals.setdefault(event["args"]["op_name"], [0.0] * runs)
            own[run - 1] += event["dur"] / 1000
    found = {name: round(statistics.median(own), 4) for name, own in totals.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
