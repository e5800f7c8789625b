"""Half of every model's units closed: the lowered model is smaller and equal."""

from __future__ import annotations

import pytest

from fgcompile.zoo.closing import GATED, close_and_lower
from fgcompile.zoo.models import entries, entry
from fgcompile.zoo.table import line, markdown

pytest.importorskip("transformers")

FAST = ("bert:classifier", "gpt2", "llama:tied", "albert", "plain-resnet")
"""One of each sort, for every run of the tests; the others are slow."""

PARTIAL = {"qk", "vo"}
"""Inside heads: the fullest head decides how many dims all heads keep."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(e.name, marks=[] if e.name in FAST else [pytest.mark.slow])
        for e in entries()
    ],
)
def test_closed_units_go_and_nothing_else_changes(name: str) -> None:
    result = close_and_lower(entry(name))
    assert not result.failed, line(result)
    for closing in result.closings:
        assert closing.difference <= 1e-5, closing
        complete = closing.share >= 1 or closing.notes
        assert complete or closing.kind in PARTIAL, closing


def test_a_transformer_has_mlp_and_head_groups() -> None:
    result = close_and_lower(entry("bert"), ("mlp", "head"))
    assert result.groups["mlp"] == result.groups["head"] == 2


def test_page_has_a_row_per_kind() -> None:
    result = close_and_lower(entry("bert"), ("mlp",))
    page = markdown([result])
    assert "| bert | mlp | 2 | equal | - | 28,576 ->" in page
    assert page.endswith("None.\n")


def test_kinds_without_groups_are_left_out() -> None:
    result = close_and_lower(entry("plain-mixer"), GATED)
    assert "head" not in [closing.kind for closing in result.closings]
