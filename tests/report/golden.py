"""Compares text with a stored file; EXPECTTEST_ACCEPT=1 rewrites the file."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def assert_golden(name: str, text: str) -> None:
    """The file `golden/name` holds exactly `text`."""
    path = FOLDER / name
    if os.environ.get("EXPECTTEST_ACCEPT"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    assert path.is_file(), f"no golden file {name}; EXPECTTEST_ACCEPT=1 writes it"
    assert text == path.read_text(encoding="utf-8")
