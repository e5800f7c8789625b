"""The page about custom operators does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fgcompile.rules import registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "custom-ops.md"


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that a test registers are gone after it."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    return


def test_the_page_runs_from_top_to_bottom(own_rules: None) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
