"""The API reference has every public name, and each says what it is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fgcompile
from fgcompile import errors, methods
from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "api.md").read_text("utf-8")
LISTED = {
    name.rpartition(".")[2]
    for name in re.findall(
        r"^\.\. auto(?:function|class|decorator):: (\S+)", PAGE, re.M
    )
}


@pytest.mark.parametrize("module", [fgcompile, methods])
def test_every_public_name_is_listed(module: object) -> None:
    public = set(module.__all__)  # type: ignore[attr-defined]
    assert public - LISTED == set()
    assert [name for name in public if not inspect.getdoc(getattr(module, name))] == []


def test_errors_are_listed_by_their_module() -> None:
    assert ".. automodule:: fgcompile.errors\n   :members:" in PAGE
    assert all(
        inspect.getdoc(cls) for cls in vars(errors).values() if isinstance(cls, type)
    )


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path: Path) -> None:
    """As README.md does in CI; here with links between pages as well."""
    pytest.importorskip("sphinx")
    options = ["--fail-on-warning", "--keep-going", "-q", "--fresh-env"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site" / "how-it-works.html").read_text("utf-8")
    pictures = re.findall(r'src="(_images/\w+\.svg)"', page)
    assert len(pictures) == 5
    assert all((tmp_path / "site" / picture).is_file() for picture in pictures)
    remote = re.findall(r'(?:src|<link[^>]*href)="https?://', page)
    assert remote == [], "the site must work offline"
