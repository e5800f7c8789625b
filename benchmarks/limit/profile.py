"""Where the time goes that the removed multiply-accumulates should have saved."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import onnxruntime

from benchmarks.cells import Result
from benchmarks.limit.sessions import runner, session

SECONDS = 10.0
LEAST, MOST = 10, 100
"""Runs of each file, which take turns."""

Times = dict[str, float]


def profile(
    dense: Path, pruned: Path, mac_ratio: float, batch: int, tokens: int, threads: int
) -> Result:
    """Milliseconds of one run by operator type: dense, pruned, and the excess.

    The excess of an operator is what it takes beyond its part of the dense time, if all
    operators shrank as the multiply-accumulates do; of all together it is the time
    beyond the limit.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {"dense": dense, "pruned": pruned}
        prefixes = {name: Path(folder) / name for name in files}
        opened = {
            name: session(file, threads, prefixes[name]) for name, file in files.items()
        }
        runs = _in_turns(opened, batch, tokens)
        found = {name: _by_operator(each, runs) for name, each in opened.items()}
    return {"runs": runs, **found, "excess": excess(**found, mac_ratio=mac_ratio)}


def excess(dense: Times, pruned: Times, mac_ratio: float) -> Times:
    """Time of each operator beyond its part of the dense one, largest first [ms]."""
    found = {
        name: round(pruned.get(name, 0.0) - mac_ratio * dense.get(name, 0.0), 4)
        for name in {**dense, **pruned}
    }
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def _in_turns(
    opened: dict[str, onnxruntime.InferenceSession], batch: int, tokens: int
) -> int:
    """Runs all sessions in turns after one that warms them up; how often."""
    calls = [runner(each, batch, tokens) for each in opened.values()]
    end = time.perf_counter() + SECONDS
    turns = 0
    while turns <= LEAST or (turns <= MOST and time.perf_counter() < end):
        for call in calls:
            call()
        turns += 1
    return turns - 1


def _by_operator(opened: onnxruntime.InferenceSession, runs: int) -> Times:
    """Medians over the runs but the first, of sums over operators of a type [ms]."""
    events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    nodes = [
        event
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    each, rest = divmod(len(nodes), runs + 1)
    assert rest == 0, "every run has the same operators"
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0] * runs)
    for position, event in enumerate(nodes[each:]):
        totals[event["args"]["op_name"]][position // each] += event["dur"] / 1000
    found = {name: round(statistics.median(own), 4) for name, own in totals.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
