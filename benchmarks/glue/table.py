"""The table, from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.glue.choices import choices
from benchmarks.glue.plan import Job, plan
from benchmarks.glue.rows import ROWS
from benchmarks.glue.verdicts import TITLES, aims, missing, teacher
from examples.glue import TASKS

NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
INTRO = """\
# The papers' methods on GLUE

all-MiniLM-L6-v2 (six layers of 384, 10,616,832 parameters in the linear layers of its
encoder), fine-tuned by every method on the same rows and scored on the development set:
`python -m benchmarks.glue`. This page is written from the records in
`benchmarks/results/glue` by `python -m benchmarks.glue --table docs/glue.md`.

Metrics are GLUE's, in percent; with several seeds, mean and sample standard deviation.
*Trained* leaves out pooler and classifier (148 thousand), which every method trains,
as papers do. *Removed* is what is gone from the linear layers of the encoder in the
lowered ONNX file, and *latency* is that of the file for one sentence of 128 tokens in
onnxruntime, relative to the dense file in the same run.

## How to read it

- How a row is trained is in `benchmarks/glue/rows.py`, with its steps in its record. No
  setting was chosen by these scores: rows that train few parameters take one learning
  rate, rows that train all take another. One was corrected by them: PST first ran
  at the rate of few parameters, twenty times the paper's, and scored as chance does
  (CoLA 0.0, MRPC 68.4 / 81.2, STS-B -6.5 / -4.6). It takes the paper's rate.
- Latency depends on shapes, not on values. Where a machine was gone with its files, the
  dense file is that of the model before its training, and files of the choices on CoLA
  and SST-2, and of some distilled rows, are timed without the training that follows
  their pruning: the pruning was run again with its seed, and left as many parameters as
  the record says, to 0.01 %.
- "FineGates as published" has the authors' objective and start, but not their schedule:
  its gates train at a rate of 1e-2 for 8 epochs (4.8 on CoLA, STS-B and SST-2), as 1e-3
  would close nothing in so few steps. Published: 1e-3 for 100 epochs. It may do better
  with them.
- The rows of RTE and SST-2, and the levels of 65 % and 80 %, were fixed before any run:
  "shared gates, distilled" and "shared gates, all weights" were expected to be the best
  two of ours. They are not picked by their scores.
- Seeds 1 and 2 of full fine-tuning and of "shared gates, distilled, 50%" were planned
  for MRPC alone. With one seed elsewhere, the average of that row over the tasks was
  -0.01 points, too near to its aim to tell; so they were added for every task, and
  count whatever they showed. So was that row without its teacher on RTE and SST-2.
- Rows with a budget that train all weights prune for 0.4 of the passes of full
  fine-tuning, and train what is left for 0.8 of them up to 50 %, 1.2 at 65 % and 1.6 at
  80 %, at 1e-4 instead of 5e-5. Those that start from the dense model ("distilled",
  "from dense") have the passes of that one besides.
"""


_SECTIONS = (aims, choices, teacher, missing)


def markdown(records: Iterable[dict[str, Any]]) -> str:
    """The page; it names the planned runs that have no record."""
    by_name = {record["name"]: record for record in records}
    tables = [_table(by_name, task, title) for task, title in TITLES.items()]
    parts = [INTRO, *tables, *(section(by_name) for section in _SECTIONS)]
    return "\n".join(part for part in parts if part)


def _table(by_name: dict[str, dict[str, Any]], task: str, title: str) -> str:
    lines = [
        _line(row, removed, found)
        for row, removed in _levels(task)
        if (found := _found(by_name, task, row, removed))
    ]
    if not lines:
        return ""
    metrics = " / ".join(NAMES[m] for m in TASKS[task].metrics)
    head = f"| method | {metrics} | trained | removed | latency | seeds |"
    return "\n".join([f"## {title}\n", head, _RULE, *lines]) + "\n"


_RULE = "| --- | ---: | ---: | ---: | ---: | ---: |"


def _levels(task: str) -> list[tuple[str, float]]:
    """Rows of a task in the order of the table, lighter pruning first."""
    order = {row: number for number, row in enumerate(ROWS)}
    levels = {(job.row, job.removed) for job in plan((task,))}
    return sorted(levels, key=lambda level: (order[level[0]], level[1]))


def _found(
    by_name: dict[str, dict[str, Any]], task: str, row: str, removed: float
) -> list[dict[str, Any]]:
    names = [Job(task, row, removed, seed).name for seed in range(10)]
    return [by_name[name] for name in names if name in by_name]


def _line(row: str, removed: float, records: list[dict[str, Any]]) -> str:
    first = records[0]
    title = ROWS[row].title + (f", {removed:.0%}" if removed else "")
    scores = [
        _spread([record["metrics"][metric] for record in records])
        for metric in first["metrics"]
    ]
    share = statistics.fmean(record["removed_share"] for record in records)
    gone = "" if share < 0.0005 else f"{share:.1%}"
    if "counted_removed" in first:
        gone = f"{gone or '0 %'} ({first['counted_removed']:.1%} counted alone)"
    timed = [r["latency"]["relative"] for r in records if "latency" in r]
    latency = f"{statistics.fmean(timed):.2f}" if timed else ""
    trained = f"{first['trainable']['rest']:,}"
    cells = (title, " / ".join(scores), trained, gone, latency, str(len(records)))
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.1f}"
