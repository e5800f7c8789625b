"""What a user can choose between: accuracy against size, and against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.glue.plan import BEST, CHOICE_LEVELS, CHOICE_TASKS, CHOICES, Job
from benchmarks.glue.rows import ROWS
from benchmarks.glue.verdicts import TITLES, Records, score
from benchmarks.markdown import table
from benchmarks.plotting import figure, save

WHOLE = ("full", "lora", "int8")
"""Rows that remove nothing."""

_INTRO = """\
## Accuracy against size

Gates and [Torch-Pruning](https://github.com/VainF/Torch-Pruning) from the same dense
model, with as many passes after it and no teacher. Torch-Pruning takes as many heads
and channels in every layer, those of least importance at once, then trains at the rate
that our rows recover at. Means of the task's metrics, in percent; in brackets is what
is gone.
"""


def choices(records: Records) -> str:
    """The section; pictures are shown of tasks that have records with latency."""
    heads = ("task", "asked for", *(ROWS[row].title for row in CHOICES))
    rows = [
        (
            TITLES[task],
            f"{level:.0%}",
            *(_cell(records, task, r, level) for r in CHOICES),
        )
        for task in CHOICE_TASKS
        for level in CHOICE_LEVELS
    ]
    shown = [
        f"![Score over latency, {TITLES[task]}](benchmarks/{_file(task)})\n"
        for task in CHOICE_TASKS
        if _is_timed(records, task)
    ]
    sums = [_against(records, row) for row in CHOICES[1:]]
    parts = [_INTRO, table(heads, rows, left=2), *filter(None, sums), *shown]
    return "\n".join(parts)


def _against(records: Records, peer: str) -> str:
    """How ours does beside a peer, over what both have been run at."""
    pairs = [
        (records[ours], records[theirs])
        for task in CHOICE_TASKS
        for level in CHOICE_LEVELS
        for ours, theirs in [[Job(task, r, level).name for r in (CHOICES[0], peer)]]
        if ours in records and theirs in records
    ]
    if not pairs:
        return ""
    gains = [score(ours) - score(theirs) for ours, theirs in pairs]
    ahead = sum(gain > 0 for gain in gains)
    return (
        f"Beside {ROWS[peer].title}, gates are ahead in {ahead} of {len(gains)} of "
        f"these, by {sum(gains) / len(gains):+.1f} points on average; one seed each.\n"
    )


def _cell(records: Records, task: str, row: str, level: float) -> str:
    record = records.get(Job(task, row, level).name)
    if record is None:
        return "not run"
    return f"{score(record):.1f} ({record['removed_share']:.1%})"


def draw(found: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """A picture a task that has been timed: score over latency and over size."""
    records = {record["name"]: record for record in found}
    tasks = [task for task in CHOICE_TASKS if _is_timed(records, task)]
    return [_draw(records, task, folder) for task in tasks]


def _draw(records: Records, task: str, folder: Path) -> Path:
    drawn, axes = figure(columns=2, scale=1.3)
    for row in (BEST, *CHOICES, *WHOLE):
        own = _runs(records, task, row)
        style = {"ls": "", "marker": "s"} if row in WHOLE else {"marker": "o"}
        for axis, place in zip(axes, (_latency, _left), strict=True):
            points = sorted((place(r), score(r)) for r in own if place(r) is not None)
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axis.plot(xs, ys, ms=4, label=ROWS[row].title, **style)
    axes[0].set(xlabel="latency / dense", ylabel=f"{TITLES[task]}, mean metric [%]")
    axes[1].set(xlabel="linear parameters of the encoder left [%]")
    axes[0].legend(fontsize="x-small")
    folder.mkdir(parents=True, exist_ok=True)
    return save(drawn, folder / _file(task))


def _runs(records: Records, task: str, row: str) -> list[dict[str, Any]]:
    """Those of a row with seed 0."""
    return [record for record in records.values() if _is(record, task, row)]


def _latency(record: Mapping[str, Any]) -> float | None:
    """Relative to the dense file; None if it was not timed."""
    return record["latency"]["relative"] if "latency" in record else None


def _left(record: Mapping[str, Any]) -> float:
    """Share of the encoder's linear parameters [%]."""
    return 100.0 * (1.0 - record["removed_share"])


def _is_timed(records: Records, task: str) -> bool:
    return any(
        _latency(record) is not None
        for row in CHOICES
        for record in _runs(records, task, row)
    )


def _is(record: Mapping[str, Any], task: str, row: str) -> bool:
    return (record["task"], record["row"], record["seed"]) == (task, row, 0)


def _file(task: str) -> str:
    return f"glue-{task}.svg"
