"""`python -m fgcompile.zoo [NAME ...]`: capture every model, or the named ones."""

from __future__ import annotations

import sys

from fgcompile.zoo.models import entries
from fgcompile.zoo.survey import survey


def main(names: list[str]) -> int:
    """Print one line per model; 1 if any failed, 2 if a name is unknown."""
    known = {entry.name: entry for entry in entries()}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown: {', '.join(unknown)}\n  Choose from: {', '.join(known)}")
        return 2
    failed = False
    for row in survey(known[name] for name in names or known):
        print(row, flush=True)
        failed |= bool(row.error)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
