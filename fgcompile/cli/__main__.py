"""`python -m fgcompile.cli`: the command where its script is not on the path."""

from __future__ import annotations

from fgcompile.cli import run

if __name__ == "__main__":
    run()
