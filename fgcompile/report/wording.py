"""Numbers and names as a reader wants them."""

from __future__ import annotations

from collections.abc import Sequence

from fgcompile.report.changes import Measure

_EXACT = 10_000
_STEPS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def short(count: int | None) -> str:
    """Four significant digits, exact below 10,000: 22712832 is "22.71M"."""
    if count is None:
        return "?"
    if abs(count) < _EXACT:
        return f"{count:,}"
    for step, suffix in _STEPS:
        if abs(count) >= step:
            return f"{count / step:.4g}{suffix}"
    raise AssertionError(count)  # the smallest step is below _EXACT


def in_bytes(count: int | None) -> str:
    """Decimal units: 90859520 is "90.86 MB"."""
    text = short(count)
    if count is None or text[-1].isdecimal():
        return f"{text} B"
    return f"{text[:-1]} {text[-1]}B"


def difference(value: float) -> str:
    """Two digits: "2.1e-06"; an exact zero is "0"."""
    return f"{value:.1e}" if value else "0"


def percent(measure: Measure) -> str:
    """Signed relative change; empty where nothing changed or nothing is known."""
    if measure.ratio is None or measure.delta == 0:
        return ""
    return f"{measure.ratio * 100:+.1f} %"


def plural(count: int, word: str) -> str:
    """A count with its noun: 1 group, 2 groups."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def listed(items: Sequence[str], most: int) -> str:
    """The first items, and how many more there are."""
    shown = ", ".join(items[:most])
    rest = len(items) - most
    return f"{shown} and {rest:,} more" if rest > 0 else shown
