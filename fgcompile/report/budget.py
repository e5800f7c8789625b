"""Limits on what a change may cost: "params=-30%", "bytes=50M", "diff=1e-4".

A limit with a percent sign bounds the relative change: "-30%" asks for at
least 30 % less, "+5%" allows 5 % more. A limit without bounds the value after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from fgcompile.errors import FgcompileError
from fgcompile.report.changes import BudgetResult, Measure, Verdict

_SCALE = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_RELATIVE = re.compile(r"([+-]?\d+(?:\.\d+)?)%")
_ABSOLUTE = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([KMGB]?)", re.IGNORECASE)
_MEASURES = {"params": "parameters", "macs": "macs", "bytes": "size_bytes"}


class BudgetError(FgcompileError):
    """A limit is not of the form measure=limit."""


def check_budgets(verdict: Verdict, limits: Iterable[str]) -> tuple[BudgetResult, ...]:
    """One result per limit, in the order given; an unknown value never passes.

    Raises:
        BudgetError: If a limit cannot be parsed.
    """
    return tuple(_check(verdict, text) for text in limits)


def _check(verdict: Verdict, text: str) -> BudgetResult:
    name, _, limit = (part.strip() for part in text.partition("="))
    if name == "diff":
        return _check_difference(verdict, text, limit)
    if name not in _MEASURES:
        raise _malformed(text, "the measure is one of params, macs, bytes, diff")
    measure: Measure = getattr(verdict, _MEASURES[name])
    if relative := _RELATIVE.fullmatch(limit):
        return _check_relative(name, measure, float(relative[1]))
    return _check_absolute(name, measure.after, _absolute(text, limit), limit)


def _check_relative(name: str, measure: Measure, percent: float) -> BudgetResult:
    limit = f"{percent:+g}%"
    if measure.ratio is None:
        return BudgetResult(name, limit, "not known", False)
    # Counts are integers: compare them without dividing, so -30% is exact.
    assert measure.before is not None
    assert measure.delta is not None
    ok = measure.delta * 100 <= percent * measure.before
    return BudgetResult(name, limit, f"{measure.ratio:+.1%}", ok)


def _check_absolute(
    name: str, after: int | None, bound: float, limit: str
) -> BudgetResult:
    if after is None:
        return BudgetResult(name, limit, "not known", False)
    return BudgetResult(name, limit, f"{after:,}", after <= bound)


def _check_difference(verdict: Verdict, text: str, limit: str) -> BudgetResult:
    bound = _absolute(text, limit)
    if verdict.verified is None:
        return BudgetResult("diff", limit, "not verified", False)
    actual = verdict.verified.max_difference
    return BudgetResult("diff", limit, f"{actual:.1e}", actual <= bound)


def _absolute(text: str, limit: str) -> float:
    match = _ABSOLUTE.fullmatch(limit)
    if match is None:
        raise _malformed(text, "the limit is like -30%, +5%, 50M or 1e-4")
    return float(match[1]) * _SCALE[match[2].upper()]


def _malformed(text: str, fact: str) -> BudgetError:
    return BudgetError(
        f'cannot read the budget "{text}"\n  {fact}\n'
        "  Write it as measure=limit, for example --budget params=-30%."
    )
