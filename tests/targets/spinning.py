"""Processor time that a session's threads take while nothing runs."""

from __future__ import annotations

import time
from collections.abc import Callable

SPINNING = 0.005
"""Less is idle; threads that spin take about 30 ms of the time looked at [s]."""


def time_after(run: Callable[[], object]) -> float:
    """Median processor time [s] of this process in the 50 ms after a run."""
    idle = []
    for _ in range(5):
        run()
        start = time.process_time()
        time.sleep(0.05)
        idle.append(time.process_time() - start)
    return sorted(idle)[2]
