from __future__ import annotations

import json

import pytest

from fgcompile.report.budget import BudgetError
from fgcompile.report.changes import (
    GroupChange,
    InterfaceChange,
    Measure,
    Member,
    Verdict,
    Verification,
    digest_of_indices,
)
from fgcompile.report.graph_diff import GraphDiff

HALVED = GraphDiff(
    verdict=Verdict(
        parameters=Measure(1000, 700),
        macs=Measure(5000, 4000),
        size_bytes=Measure(4000, 2800),
    ),
    groups=(
        GroupChange(
            name="layers.0.mlp",
            kind="mlp",
            before=4,
            after=2,
            unit_parameters=17,
            members=(Member("layers.0.up.weight", 0, 4, 2),),
            kept=(1, 3),
        ),
    ),
)


def test_a_diff_without_changes_is_same():
    assert GraphDiff().same
    assert not HALVED.same


def test_only_a_breaking_interface_change_breaks():
    new_output = InterfaceChange("output", "attn", "added", "", "float32[2]", False)
    lost_input = InterfaceChange("input", "mask", "removed", "bool[2]", "", True)
    assert not GraphDiff(interface=(new_output,)).breaking
    assert GraphDiff(interface=(new_output, lost_input)).breaking


def test_digest_depends_on_the_indices_only():
    assert digest_of_indices((1, 3)) == digest_of_indices([1, 3])
    assert digest_of_indices((1, 3)) != digest_of_indices((1, 2))
    assert digest_of_indices((1, 23)) != digest_of_indices((12, 3))


@pytest.mark.parametrize(
    ("limit", "ok", "actual"),
    [
        ("params=-30%", True, "-30.0%"),
        ("params=-30.1%", False, "-30.0%"),
        ("macs=-20%", True, "-20.0%"),
        ("macs=+5%", True, "-20.0%"),
        ("bytes=2.8K", True, "2,800"),
        ("bytes=2799", False, "2,800"),
        ("params=1M", True, "700"),
    ],
)
def test_a_budget_bounds_the_change_or_the_value(limit, ok, actual):
    (result,) = HALVED.with_budgets([limit]).verdict.budgets
    assert (result.ok, result.actual) == (ok, actual)


def test_a_difference_budget_fails_until_verified():
    unverified = HALVED.with_budgets(["diff=1e-4"])
    assert not unverified.verdict.within_budget
    verified = HALVED.with_verification(Verification(3e-6)).with_budgets(["diff=1e-4"])
    assert verified.verdict.within_budget


@pytest.mark.parametrize("limit", ["params", "speed=-3%", "params=-30", "bytes=ten"])
def test_a_malformed_budget_is_refused(limit):
    with pytest.raises(BudgetError, match="cannot read the budget"):
        HALVED.with_budgets([limit])


def test_json_holds_the_kept_indices_and_their_digest():
    document = json.loads(HALVED.to_json())
    (group,) = document["groups"]
    assert group["kept"] == [1, 3]
    assert group["kept_digest"] == digest_of_indices((1, 3))
    assert document["schema_version"] == "1.1"
    assert document["same"] is False
