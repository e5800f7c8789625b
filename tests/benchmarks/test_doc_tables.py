"""The tables in documents are those of the results."""

from __future__ import annotations

import pytest

from benchmarks import doc_tables


@pytest.mark.parametrize("page", doc_tables.PAGES)
def test_page_shows_the_results(page: str) -> None:
    """Else: `python -m benchmarks.doc_tables`."""
    text = (doc_tables.DOCS / f"{page}.md").read_text("utf-8")
    assert doc_tables.with_tables(page, text) == text


def test_a_number_that_someone_changed_is_put_right() -> None:
    text = (doc_tables.DOCS / "targets.md").read_text("utf-8")
    accuracy = doc_tables.record.read("int8-sst2")["variants"]["dense int8"]
    shown = f"{100 * accuracy['accuracy']:.2f}"
    changed = text.replace(shown, "99.99")
    assert doc_tables.with_tables("targets", changed) == text


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places for the table int8-sst2"):
        doc_tables.with_tables("targets", "# Targets")
