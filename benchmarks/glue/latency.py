"""How long ONNX files take, relative to a dense one beside them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgcompile.targets.onnx import onnx_session
from fgcompile.targets.timing import median_times, undisturbed_clock

BATCH, LENGTH = 1, 128
SECONDS = 15.0
"""Of each group of files that are timed in turns."""


def latencies(files: Sequence[Path], threads: int) -> list[float]:
    """Median time of one sentence of 128 tokens [s] by each file, in turns."""
    calls = []
    for file in files:
        session = onnx_session(file, threads)
        feed = {value.name: _values(value.name) for value in session.get_inputs()}
        calls.append(functools.partial(session.run, None, feed))
    return median_times(calls, SECONDS, undisturbed_clock(threads))


def relative(dense: Path, pruned: Path, threads: int) -> dict[str, float]:
    """Latency [ms] of two files, timed in turns."""
    before, after = latencies([dense, pruned], threads)
    return {
        "dense_ms": 1000 * before,
        "ms": 1000 * after,
        "relative": after / before,
        "threads": threads,
    }


def _values(name: str) -> np.ndarray[Any, Any]:
    if "ids" in name and "type" not in name:
        ids = np.random.default_rng(0).integers(1000, 20_000, (BATCH, LENGTH))
        return ids.astype(np.int64)
    # All tokens are seen, and belong to the first sentence.
    return np.full((BATCH, LENGTH), "mask" in name, np.int64)
