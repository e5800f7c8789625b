"""The tables of docs/targets.md are those of the results."""

from __future__ import annotations

import pytest

from benchmarks import target_tables


def test_page_shows_the_results() -> None:
    """Else: `python -m benchmarks.target_tables`."""
    text = target_tables.PAGE.read_text("utf-8")
    assert target_tables.with_tables(text) == text


def test_a_number_that_someone_changed_is_put_right() -> None:
    text = target_tables.PAGE.read_text("utf-8")
    accuracy = target_tables.record.read("int8-sst2")["variants"]["dense int8"]
    shown = f"{100 * accuracy['accuracy']:.2f}"
    assert target_tables.with_tables(text.replace(shown, "99.99")) == text


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places for the table int8-sst2"):
        target_tables.with_tables("# Targets")
