"""Pictures that come out the same from the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

matplotlib.use("svg")
# Identifiers and dates would differ from run to run.
matplotlib.rcParams.update({"svg.hashsalt": "fgcompile", "svg.fonttype": "none"})


def figure(columns: int = 1, scale: float = 1.0) -> tuple[Any, list[Any]]:
    """A picture with axes side by side."""
    size = (4.5 * columns * scale, 3.4 * scale)
    picture, axes = pyplot.subplots(1, columns, figsize=size, squeeze=False)
    return picture, list(axes[0])


def save(picture: Any, file: Path) -> Path:
    """Writes the picture as SVG; the file."""
    picture.tight_layout()
    picture.savefig(file, metadata={"Date": None})
    pyplot.close(picture)
    return file
