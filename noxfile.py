"""Tests on other Python and torch versions: `pip install nox`, then `nox`.

The main run, `.ci/run`, tests the newest versions that constraints.txt pins. This file
tests the ends of the ranges that pyproject.toml promises. On x86_64 Linux pip installs
torch with CUDA, about 5 GB for each environment; `nox -s "tests(oldest)"` makes one.
"""

from __future__ import annotations

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

# Operators, exporters and FX change with torch; the rest of the suite does not.
SUBSET = (
    "tests/rules",
    "tests/passes",
    "tests/lowering",
    "tests/test_capture.py",
    "tests/test_errors.py",
    "tests/test_insert_gates.py",
    "tests/gates/test_attach.py",
    "tests/gates/test_storage.py",
    "tests/checkpoint/test_saved_modules.py",
    "tests/report/test_graph_diff.py",
    "tests/targets/test_exported.py",
    "tests/targets/test_onnx.py",
    "tests/targets/test_decoder.py",
    "tests/cli",
)


@nox.session
@nox.parametrize(
    ("python", "torch"),
    [
        nox.param("3.10", "2.13.0", id="oldest"),
        nox.param("3.11", "2.14.1", id="newest torch"),
        nox.param("3.12", "2.14.1", id="newest"),
    ],
)
def tests(session: nox.Session, torch: str) -> None:
    """The subset above; name other files behind `--`."""
    session.install(f"torch=={torch}", "-e", ".[test]")
    session.run("python", "-m", "pip", "list", "--format=freeze")
    session.run("python", "-m", "pytest", "-q", *(session.posargs or SUBSET))
