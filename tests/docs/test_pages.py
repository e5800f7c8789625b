"""Every page of the documentation does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fgcompile.rules import registry
from tests.docs.pages import DOCS, has_git, read
from tests.docs.settings import CHECKS, SETTINGS

CONSOLE = {"tutorial.md"}
"""Pages whose console blocks run too; those of other pages show what is not here."""

SLOW = {"decoders.md", "methods.md", "reports.md", "targets.md"}
QUICK_UNTIL = {"decoders.md": "## ONNX, with its cache"}
"""Headings of slow pages up to which they run in every test run."""

SKETCHES = {"index.md"}
"""Pages that show code without all that it needs."""

ELSEWHERE = {"budgets.md"}
"""Pages with a test of their own, which reads what they print."""

CODED = [
    page.name
    for page in sorted(DOCS.glob("*.md"))
    if "```python\n" in page.read_text("utf-8")
    and page.name not in SKETCHES | ELSEWHERE
]


@pytest.fixture
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that a page registers are gone after it."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CODED],
)
@pytest.mark.usefixtures("own_rules")
def test_page_runs_from_top_to_bottom(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    if name in CONSOLE and not has_git():
        pytest.skip("git is not installed")
    monkeypatch.chdir(tmp_path)
    page = read(name, console=name in CONSOLE)
    SETTINGS.get(name, lambda names: None)(page.namespace)
    for example in page:
        example.evaluate()
    CHECKS.get(name, lambda names: None)(page.namespace)


@pytest.mark.parametrize(("name", "heading"), QUICK_UNTIL.items())
@pytest.mark.usefixtures("own_rules")
def test_first_part_of_a_slow_page_runs(
    name: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    last = (DOCS / name).read_text("utf-8").splitlines().index(heading)
    examples = [each for each in read(name, console=False) if each.line <= last]
    assert examples
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("name", CODED)
def test_no_block_is_overlooked(name: str) -> None:
    """An unbalanced fence would hide a block from the test above."""
    text = (DOCS / name).read_text("utf-8")
    blocks = {example.line for example in read(name, console=False)}
    opened = [k for k, line in enumerate(text.splitlines(), 1) if line == "```python"]
    assert opened
    assert {line for line in opened if line not in blocks} == {
        line for line in opened if text.splitlines()[line].startswith(">>>")
    }


def test_every_defect_that_is_listed_has_its_test() -> None:
    """Tests that docs/trust.md names exist; it leaves out no random program."""
    folder = DOCS.parent / "tests"
    files = [
        folder / "properties" / "test_found_by_random_programs.py",
        folder / "hostile" / "test_found.py",
        folder / "lowering" / "test_load.py",
        folder / "gates" / "test_fold.py",
        folder / "targets" / "test_verify.py",
        *sorted((folder / "passes").glob("test_*.py")),
    ]
    found = re.findall(
        r"^def (test_\w+)", "".join(f.read_text("utf-8") for f in files), re.M
    )
    named = re.findall(r"`(test_\w+)`", (DOCS / "trust.md").read_text("utf-8"))
    assert set(named) <= set(found)
    random = re.findall(r"^def (test_\w+)", files[0].read_text("utf-8"), re.M)
    assert set(random) <= set(named), "describe the defect in docs/trust.md"
