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
    times = interleaved_times(calls, seconds, clock=clock)
    return [statistics.median(found) for found in times]


def interleaved_times(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    least: int = LEAST,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Times of each call [s], one for each turn.

    Args:
        calls: Called in turns.
        seconds: No further turn begins after this, once there were `least`; after
            100 turns none begins.
        least: Turns that there are at least.
        warm_up: Turns before those, which do not count.
        clock: What a call takes is the difference of this.
    """
    for _ in range(warm_up):
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    for turn in range(MOST):
        if turn >= least and time.perf_counter() > end:
            break
        for call, found in zip(calls, times, strict=True):
            start = clock()
            call()
            found.append(clock() - start)
    return times


def undisturbed_clock(threads: int) -> Callable[[], float]:
    """A clock [s] that stands still while other processes have the processor.

    Work on one thread takes as long by this as it does on an idle machine. There is
    none for several threads, nor a fine one on Windows: then it is the wall clock.
    """
    alone = threads == 1 and sys.platform != "win32"
    return time.thread_time if alone else time.perf_counter
