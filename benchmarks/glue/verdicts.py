"""What the records say about the aims, about the teacher, and what is missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.glue.plan import BEST, HIGH, TAUGHT_TASKS, TEACHING, UNTAUGHT, Job, plan
from benchmarks.glue.rows import ROWS
from benchmarks.markdown import table

Records = Mapping[str, dict[str, Any]]
"""By the name of their file."""

ByTask = Mapping[str, list[tuple[float, float]]]
"""For each task, points beside full fine-tuning and the removed share of each seed."""

TITLES = {
    "mrpc": "MRPC",
    "cola": "CoLA",
    "stsb": "STS-B",
    "rte": "RTE",
    "sst2": "SST-2, 12,000 rows",
}
AIMS = {ROWS[BEST].removed: 0.0, **dict(zip(HIGH, (1.0, 3.0), strict=True))}
"""Points that may be lost on average over the tasks, by what is removed."""

_INTRO = f"""\
## What was aimed at

Set in advance: "{ROWS[BEST].title}" loses nothing on average over the tasks with
50 % of the linear parameters of the encoder removed, at most one point with 65 %, and
at most three with 80 %. The difference is that to full fine-tuning, in points of the
mean of the task's metrics, over the seeds that both have; where every task has several,
the average comes with its standard error. *Removed* is the least that is gone in one
of these runs.
"""
_TRIED = """\
Other ways to be rid of half, compared likewise, over the tasks that they were run on:
"""
_TEACHER = """\
## What the teacher buys

Both start from the dense model of their seed and are trained alike; one is also taught
by it. Means of the task's metrics, in percent.
"""


def aims(records: Records) -> str:
    """The section about the aims: reached, not reached or open, and by how much."""
    heads = ("removed", "aim", "by task", "average", "removed, at least", "verdict")
    rows = [_aim(records, level, allowed) for level, allowed in AIMS.items()]
    return f"{_INTRO}\n{table(heads, rows, left=3)}\n{_tried(records)}"


def _aim(records: Records, level: float, allowed: float) -> tuple[str, ...]:
    wanted = [t for t in TITLES if any(_is(job, level) for job in plan((t,)))]
    found = _by_task(records, BEST, level)
    shares = [share for pairs in found.values() for _, share in pairs]
    missing = [_short(task) for task in wanted if task not in found]
    return (
        f"{level:.0%}",
        f"at least {-allowed:+.1f}" if allowed else "at least 0.0",
        _each(found),
        _average(found),
        f"{min(shares):.1%}" if shares else "",
        _verdict(_mean(found), allowed, missing),
    )


def _tried(records: Records) -> str:
    """What other rows lose at the level of the best one."""
    level = ROWS[BEST].removed
    others = [name for name, row in ROWS.items() if row.removed == level]
    found = {name: _by_task(records, name, level) for name in others if name != BEST}
    rows = [
        (ROWS[name].title, _each(by_task), _average(by_task))
        for name, by_task in found.items()
    ]
    return f"{_TRIED}\n{table(('method', 'by task', 'average'), rows, left=2)}"


def _by_task(records: Records, row: str, level: float) -> ByTask:
    found = {task: _differences(records, row, task, level) for task in TITLES}
    return {task: pairs for task, pairs in found.items() if pairs}


def _each(found: ByTask) -> str:
    return ", ".join(
        f"{_short(task)} {statistics.fmean(points for points, _ in pairs):+.1f}"
        for task, pairs in found.items()
    )


def _mean(found: ByTask) -> float | None:
    each = [statistics.fmean(points for points, _ in pairs) for pairs in found.values()]
    return statistics.fmean(each) if each else None


def _average(found: ByTask) -> str:
    """The mean over the tasks, with its standard error if that can be told."""
    mean = _mean(found)
    if mean is None:
        return ""
    if min(len(pairs) for pairs in found.values()) < 2:
        return f"{mean:+.2f}"
    squares = [
        statistics.variance(points for points, _ in pairs) / len(pairs)
        for pairs in found.values()
    ]
    return f"{mean:+.2f} ± {math.sqrt(sum(squares)) / len(squares):.2f}"


def _verdict(mean: float | None, allowed: float, missing: list[str]) -> str:
    if missing or mean is None:
        return f"open: {', '.join(missing)} not run"
    over = mean + allowed
    return f"{'reached' if over >= 0 else '**not reached**'}, by {abs(over):.2f}"


def _is(job: Job, level: float) -> bool:
    return (job.row, job.removed) == (BEST, level)


def _differences(
    records: Records, row: str, task: str, level: float
) -> list[tuple[float, float]]:
    """Points beside full fine-tuning and the removed share, one pair a seed."""
    pairs = [
        (records.get(Job(task, row, level, s).name), records.get(_full(task, s)))
        for s in range(10)
    ]
    return [
        (score(ours) - score(dense), ours["removed_share"])
        for ours, dense in pairs
        if ours and dense
    ]


def score(record: dict[str, Any]) -> float:
    """Mean of the metrics, in percent."""
    return 100 * statistics.fmean(record["metrics"].values())


def teacher(records: Records) -> str:
    """The section about the teacher."""
    levels = sorted({*TEACHING, ROWS[BEST].removed})
    rows = []
    for task in TAUGHT_TASKS:
        for level in levels:
            pair = [records.get(Job(task, row, level).name) for row in (UNTAUGHT, BEST)]
            cells = [f"{score(r):.1f}" if r else "not run" for r in pair]
            gain = (
                f"{score(pair[1]) - score(pair[0]):+.1f}" if pair[0] and pair[1] else ""
            )
            rows.append((TITLES[task], f"{level:.0%}", *cells, gain))
    heads = ("task", "removed", "without", "with a teacher", "difference")
    return f"{_TEACHER}\n{table(heads, rows)}"


def missing(records: Records) -> str:
    """The section about planned runs without a record; empty if there is none."""
    jobs = [job for job in plan() if job.name not in records]
    if not jobs:
        return ""
    lines = ["## Runs that are missing\n"]
    lines.append(f"{len(jobs)} of {len(plan())} planned runs have no record yet:\n")
    for task, title in TITLES.items():
        names = [_words(job) for job in jobs if job.task == task]
        if names:
            lines.append(f"- {title}: {'; '.join(names)}")
    return "\n".join(lines) + "\n"


def _words(job: Job) -> str:
    level = f", {job.removed:.0%}" if job.removed else ""
    seed = f", seed {job.seed}" if job.seed else ""
    return f"{ROWS[job.row].title}{level}{seed}"


def _short(task: str) -> str:
    return TITLES[task].partition(",")[0]


def _full(task: str, seed: int) -> str:
    return Job(task, "full", 0.0, seed).name
