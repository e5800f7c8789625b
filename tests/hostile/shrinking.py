"""Lets hypothesis decide about the damage, so that an input that does harm gets small.

It notices which decisions matter, tries simpler ones until none is left out, and keeps
them in its database, from which the next run starts.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.hostile.runner import Reader, Tally, Target


class DefectError(AssertionError):
    """A reader did with an input what it must not do."""


def search(
    target: Target, count: int, work: Path, database: Path | None = None
) -> Tally:
    """Reads `count` inputs that hypothesis makes.

    Args:
        target: The reader and its good files.
        count: Inputs, if none is a defect.
        work: A folder for the inputs.
        database: A folder for inputs that were defects: they come first next time,
            and then new ones. Without it the inputs are the same every time.

    Returns:
        Their outcomes.

    Raises:
        DefectError: At the first defect, with the smallest change that still has it.
    """
    kept = None
    if database is not None:
        kept = DirectoryBasedExampleDatabase(database / target.name)
    tally = Tally()

    @settings(
        max_examples=count,
        database=kept,
        derandomize=database is None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def is_read_or_refused(random: Random) -> None:
        outcome = reader.read(random)
        tally.add(sum(tally.counts.values()), outcome)
        if outcome.defect:
            raise DefectError(f"{target.name} {outcome}")

    with Reader(target, work) as reader:
        is_read_or_refused()
    return tally
