"""How long several callables take, in turns, so that all meet the same weather."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

WARM_UP = 2
LEAST, MOST = 5, 100


def median_times(
    calls: Sequence[Callable[[], object]],
    seconds: float = 3.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Median time of each call [s], interleaved.

    Args:
        calls: Called in turns, 5 to 100 times each.
        seconds: No further turn begins after this, once there were 5.
        clock: What a call takes is the difference of this.
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
            start = clock()
            call()
            found.append(clock() - start)
    return [statistics.median(found) for found in times]


def undisturbed_clock(threads: int) -> Callable[[], float]:
    """A clock [s] that stands still while other processes have the processor.

    Work on one thread takes as long by this as it does on an idle machine. There is
    none for several threads, nor a fine one on Windows: then it is the wall clock.
    """
    alone = threads == 1 and sys.platform != "win32"
    return time.thread_time if alone else time.perf_counter
