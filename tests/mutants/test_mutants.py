"""Every mistake made on purpose is noticed before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.every import MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.patching import broken
from tests.mutants.run import run

FAST = (
    "a bias is forgotten in a constant",
    "a live unit goes, a dead one stays",
    "the eps of an RMS norm is not rescaled",
    "a slice bound is off by one",
    "an in-place sum is captured as a difference",
)
"""One for each net; the rest is slow."""


def _marked(mutant: Mutant) -> object:
    marks = () if mutant.name in FAST else (pytest.mark.slow,)
    return pytest.param(mutant, id=str(mutant), marks=marks)


@pytest.mark.parametrize("mutant", [*map(_marked, MUTANTS)])
def test_mutant_is_noticed_before_anything_is_written(mutant: Mutant) -> None:
    if mutant.target == "openvino":
        pytest.importorskip("openvino")
    outcome = run(mutant)
    assert outcome.damage, "it changes nothing, so that it proves nothing"
    assert outcome.error is not None
    assert outcome.written == ()


def test_there_are_mutants_of_everything() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 60
    assert len({mutant.place for mutant in MUTANTS}) >= 45
    assert set(FAST) < {mutant.name for mutant in MUTANTS}


def test_page_lists_every_mutant() -> None:
    text = (
        Path(__file__)
        .parents[2]
        .joinpath("docs", "mutants.md")
        .read_text(encoding="utf-8")
    )
    rows = [row for row in text.splitlines() if row.startswith("| ")][2:]
    stars = {mutant.name + ("" if mutant.proof else " *") for mutant in MUTANTS}
    assert {row.split(" | ")[0].removeprefix("| ") for row in rows} == stars


def test_right_functions_are_back_afterwards() -> None:
    from fgcompile.passes import pipeline, repair_norms

    before = dict(repair_norms._REPAIRS), pipeline.ELIMINATE
    place = "fgcompile.passes.repair_norms:_mean"
    with broken(place, lambda right: lambda *arguments: None):
        assert before[0] != repair_norms._REPAIRS
    with broken(
        "fgcompile.passes.eliminate_dead_code:eliminate_dead_code", lambda r: 0
    ):
        assert before[1] != pipeline.ELIMINATE
    assert before == (repair_norms._REPAIRS, pipeline.ELIMINATE)
