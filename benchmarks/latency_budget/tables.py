"""Tables of predicted and measured latency."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cells import Record, Result
from benchmarks.markdown import table

TOLERANCE = 0.05
"""Error of a prediction that is aimed at."""

_ABOUT = """\
Units are closed as `Budget(latency=...)` chooses them, with random importance. `limit`,
`predicted` and `measured` are parts of the dense model's latency: what the budget asks
for, what it reckons with after it measured the parts of the model on this machine (in
`seconds to measure`, once: the figures are cached), and what the lowered model takes.
"""
_BRIEF = """\
`Budget(latency=limit)`: the part of the dense model's latency that is left, as it is
predicted from parts of the model that were measured, and as it is. One row of 128
tokens on one thread.
"""
_HEADS = (
    *("model", "rows x tokens", "threads", "limit", "predicted", "measured", "error"),
    *("dense ms", "lowered ms", "seconds to measure", "peak GB"),
)


def page(records: Sequence[Record]) -> str:
    """All cells, and how many predictions are right."""
    found = _found(records)
    rows = [_row(record, result) for record, result in found]
    return "\n".join([_ABOUT, table(_HEADS, rows), _verdict(found)])


def summary(records: Sequence[Record]) -> str:
    """Limit, prediction and truth."""
    found = _found(records)
    rows = [_row(record, result) for record, result in found]
    picked = [(row[0], *row[3:7]) for row in rows]
    heads = (_HEADS[0], *_HEADS[3:7])
    return "\n".join([_BRIEF, table(heads, picked), _verdict(found)])


def plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """None: the table says it all."""
    return []


def _found(records: Sequence[Record]) -> list[tuple[Record, Result]]:
    return [(r, r.result) for r in records if r.result is not None]


def _row(record: Record, result: Result) -> tuple[str, ...]:
    size = record.parameters
    return (
        *(size["model"], f"{size['batch']} x {size['tokens']}", str(size["threads"])),
        f"{size['limit']:.2f}",
        f"{result['predicted']:.3f}",
        f"{result['measured']:.3f}",
        f"{result['error']:+.1%}",
        f"{1e3 * result['dense_seconds']:.1f}",
        f"{1e3 * result['lowered_seconds']:.1f}",
        f"{result['seconds_to_measure']:.0f}",
        f"{result['peak_memory_bytes'] / 1e9:.1f}",
    )


def _verdict(found: Sequence[tuple[Record, Result]]) -> str:
    errors = [abs(result["error"]) for _, result in found]
    if not errors:
        return ""
    return (
        f"{sum(error <= TOLERANCE for error in errors)} of {len(errors)} are within "
        f"{TOLERANCE:.0%} of what was predicted; median error "
        f"{statistics.median(errors):.1%}.\n"
    )
