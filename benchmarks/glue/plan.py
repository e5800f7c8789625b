"""Which runs the table consists of, the most telling ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.glue.rows import ROWS

ALL_ROWS = (
    *("full", "shared-distilled", "finegates", "lora", "shared-full", "shared"),
    *("shared-lora", "cofi", "shared-dense", "bitfit", "s2ft", "pst"),
)
"""Rows of MRPC, CoLA and STS-B."""

SHORT = ("full", "shared-distilled", "shared-full", "finegates", "lora")
"""Rows of RTE and SST-2: the baselines and the two best of ours."""

WHOLE_TASKS, SHORT_TASKS = ("mrpc", "cola", "stsb"), ("rte", "sst2")
BEST = "shared-distilled"
UNTAUGHT = "shared-dense"
"""The best row without its teacher."""

HIGH = (0.65, 0.8)
"""Levels of the best row beside its own."""

TEACHING = (0.4, 0.6)
"""Levels that show what a teacher buys: both start from the dense model."""

TAUGHT_TASKS = ("mrpc", "stsb")

SEEDS = (1, 2)
"""Seeds beside 0 of full fine-tuning and the best row at its own level."""

CHOICES = (UNTAUGHT, "taylor", "magnitude")
"""Ways to a smaller model from the same dense one, with as many passes each."""

CHOICE_LEVELS, CHOICE_TASKS = (0.2, 0.4, 0.6), ("mrpc", "cola", "sst2")


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
    tasks = (*WHOLE_TASKS, *SHORT_TASKS)
    for task in tasks:
        yield Job(task, "full", 0.0)
        for removed in (ROWS[BEST].removed, *HIGH):
            yield Job(task, BEST, removed)
    for row in SHORT:
        yield from (Job(task, row, ROWS[row].removed) for task in tasks)
    for task in CHOICE_TASKS:
        yield Job(task, "int8", 0.0)
        for removed in CHOICE_LEVELS:
            yield from (Job(task, row, removed) for row in CHOICES)
    for row in ALL_ROWS:
        yield from (Job(task, row, ROWS[row].removed) for task in WHOLE_TASKS)
    for seed in SEEDS:
        for row in ("full", BEST):
            yield from (Job(task, row, ROWS[row].removed, seed) for task in tasks)
    for task in tasks:
        yield Job(task, UNTAUGHT, ROWS[UNTAUGHT].removed)
    for task in TAUGHT_TASKS:
        for removed in TEACHING:
            yield from (Job(task, row, removed) for row in (BEST, UNTAUGHT))
