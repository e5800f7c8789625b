"""How long dense and pruned models take in onnxruntime, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cells import Result
from benchmarks.limit.build import Built, built
from benchmarks.limit.files import digest
from benchmarks.limit.profile import profile
from benchmarks.limit.sessions import runner, session
from fgcompile.targets.timing import interleaved_times, undisturbed_clock

SECONDS = 10.0
LEAST = 7
LIMITS = {"llama-1b": 1.08}
LIMIT = 1.05
"""Latency ratio over MAC ratio, above which a profile is taken."""

_FEW = 400_000_000_000
"""MACs of one run, which take a minute, from which it is measured three times only."""

_LARGE = 500_000_000
"""Parameters from which no more than two sessions fit into memory."""

Times = dict[str, list[float]]


def latencies(
    model: str,
    removed: int,
    batch: int,
    tokens: int,
    threads: int,
    variants: Sequence[str],
) -> Result:
    """Times of all variants, their ratios to the dense one, and where time is lost."""
    files = {name: built(model, name, removed) for name in variants}
    found: Result = {"threads": threads, "files": digest(), "variants": {}}
    for group in _groups(files):
        times = _times(group, batch, tokens, threads)
        for name in group:
            if name not in found["variants"]:
                found["variants"][name] = _facts(files, name, tokens) | {
                    "turns": len(times[name]),
                    "milliseconds": round(1000 * statistics.median(times[name]), 3),
                    "ratio": _ratio(times[name], times["dense"]),
                }
    shared = found["variants"]["shared"]
    found["over"] = shared["ratio"] / shared["mac_ratio"]
    if found["over"] > LIMITS.get(model, LIMIT):
        dense, pruned = (Path(files[name].file) for name in ("dense", "shared"))
        left = shared["mac_ratio"]
        found["profile"] = profile(dense, pruned, left, batch, tokens, threads)
    return found


def _groups(files: dict[str, Built]) -> list[dict[str, Built]]:
    """What is measured together: all, or each with the dense one if that is large."""
    if files["dense"].parameters < _LARGE:
        return [files]
    others = [name for name in files if name != "dense"]
    return [{n: files[n] for n in ("dense", other)} for other in others]


def _times(files: dict[str, Built], batch: int, tokens: int, threads: int) -> Times:
    calls = [
        runner(session(Path(one.file), threads), batch, tokens)
        for one in files.values()
    ]
    few = batch * files["dense"].macs[str(tokens)] > _FEW
    least, clock = 3 if few else LEAST, undisturbed_clock(threads)
    times = interleaved_times(calls, SECONDS, least, 1, clock)
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
