"""How long several callables take, in turns, so that all meet the same weather."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

WARM_UP = 2
LEAST, MOST = 5, 100


def median_times(
    calls: Sequence[Callable[[], object]], seconds: float = 3.0
) -> list[float]:
    """Median time of each call [s], interleaved.

    Args:
        calls: Called in turns, 5 to 100 times each.
        seconds: No further turn begins after this, once there were 5.
    """
    for _ in range(WARM_UP):
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    for turn in range(MOST):
        if turn >= LEAST and time.perf_counter() > end:
            break
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]
