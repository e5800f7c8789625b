"""The papers' claims: what is stored follows from accuracies, and comes out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims.__main__ import PAGE, RESULTS, main
from benchmarks.claims.verdicts import CLAIMS, page, verdicts
from benchmarks.glue.records import read_json


def stored() -> dict[str, Any]:
    found = read_json(RESULTS)
    assert found, RESULTS
    return found


def by_pair(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["better"], row["than"]): row for row in rows}


def test_interval_is_that_of_paired_differences() -> None:
    accuracies: Any = {claim: {} for claim, *_ in CLAIMS}
    for claim, better, worse in CLAIMS:
        accuracies[claim] |= {better: [0.5, 0.7, 0.9], worse: [0.4, 0.5, 0.6]}
    accuracies["adapt"]["random"] = [0.5, 0.7, 0.8]
    found = by_pair(verdicts(accuracies))
    # Differences of 10, 20 and 30 points: mean 20, deviation 10, t(2) at 97.5 % 4.303.
    row = found["learned", "smallest"]
    half = 4.302653 * 0.1 / 3**0.5
    assert row["difference"] == pytest.approx(0.2)
    assert (row["low"], row["high"]) == pytest.approx((0.2 - half, 0.2 + half))
    assert not row["holds"]


def test_verdicts_and_page_follow_from_the_stored_accuracies() -> None:
    found = stored()
    again = verdicts(found["accuracies"])
    for row, expected in zip(again, found["verdicts"], strict=True):
        assert row == pytest.approx(expected)
    assert len({len(v) for c in found["accuracies"].values() for v in c.values()}) == 1
    assert len(found["accuracies"]["adapt"]["learned"]) >= 5
    assert PAGE.read_text(encoding="utf-8") == page(found)


@pytest.mark.slow
def test_what_was_found_is_found_again(tmp_path: Path) -> None:
    results, written = tmp_path / "claims.json", tmp_path / "claims.md"
    main(["--seeds", "5", "--results", str(results), "--page", str(written)])
    again = read_json(results)
    found = by_pair(again["verdicts"])
    clear = [r for r in stored()["verdicts"] if r["low"] > 0 or r["high"] < 0]
    assert clear
    for row in clear:
        # Rounding differs between machines, so the interval may touch 0 there.
        now = found[row["better"], row["than"]]["difference"]
        assert now * row["difference"] > 0, row
    assert found["learned", "head"]["holds"]
    assert written.read_text(encoding="utf-8") == page(again)
