"""Which runs the table consists of, the most telling ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.glue.rows import ROWS

ALL_ROWS = (
    *("full", "shared-distilled", "finegates", "lora", "shared-full", "shared"),
    *("shared-lora", "cofi", "shared-dense", "bitfit", "s2ft", "pst"),
)
SHORT = ("full", "shared-distilled", "shared-full", "finegates", "lora")
"""Rows of RTE and SST-2: the baselines and the two best of ours."""

WHOLE_TASKS, SHORT_TASKS = ("mrpc", "cola", "stsb"), ("rte", "sst2")
BEST = "shared-distilled"
HIGH = (0.65, 0.8)
"""Levels of the best row beside its own."""

TEACHING = (0.4, 0.6)
"""Levels that show what a teacher buys: both start from the dense model."""

TAUGHT_TASKS = ("mrpc", "stsb")

SEEDS = (1, 2)
"""Seeds beside 0, on MRPC."""


@dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    row: str
    removed: float
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its files."""
        level = f"-{round(100 * self.removed)}" if self.removed else ""
        return f"{self.task}-{self.row}{level}-s{self.seed}"


def plan(
    tasks: tuple[str, ...] | None = None, rows: tuple[str, ...] | None = None
) -> list[Job]:
    """All jobs in order, or those of some tasks and rows.

    Dense models come before those that learn from them.
    """
    jobs = dict.fromkeys(_jobs())
    return [
        job
        for job in jobs
        if (tasks is None or job.task in tasks) and (rows is None or job.row in rows)
    ]


def _jobs() -> Iterator[Job]:
    for task in WHOLE_TASKS:
        for row in ALL_ROWS:
            yield Job(task, row, ROWS[row].removed)
            if row == BEST:
                yield from (Job(task, row, removed) for removed in HIGH)
    for task in TAUGHT_TASKS:
        for removed in TEACHING:
            yield from (Job(task, row, removed) for row in (BEST, "shared-dense"))
    for seed in SEEDS:
        for row in ("full", BEST):
            yield Job("mrpc", row, ROWS[row].removed, seed)
    for task in SHORT_TASKS:
        for row in SHORT:
            yield Job(task, row, ROWS[row].removed)
        yield from (Job(task, BEST, removed) for removed in HIGH)
