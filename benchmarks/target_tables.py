"""The tables of docs/targets.md: `python -m benchmarks.target_tables` writes them.

They come from the results of `benchmarks.int8`, `benchmarks.runtimes` and
`benchmarks.large_checkpoint` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from benchmarks import record
from benchmarks.machine import ROOT
from benchmarks.markdown import table

PAGE = ROOT / "docs" / "targets.md"


def int8(found: dict[str, Any]) -> str:
    """Accuracy, size and time of the four files."""
    heads = ["", "accuracy [%]", "size [MB]", "one sentence [ms]", "weight error"]
    times = found["latency"]["milliseconds"]
    return table(
        heads,
        [
            [
                name,
                f"{100 * facts['accuracy']:.2f}",
                f"{facts['megabytes']:.1f}",
                f"{times[name]:.1f}",
                f"{facts['weight_error']:.5f}" if "weight_error" in facts else "",
            ]
            for name, facts in found["variants"].items()
        ],
    )


def runtimes(found: dict[str, Any]) -> str:
    """Dense and pruned in each runtime."""
    times, over = found["milliseconds"], found["over_mac_ratio"]
    heads = ["", "dense [ms]", "pruned [ms]", "ratio", "over the MAC ratio"]
    rows = []
    for name, excess in over.items():
        dense, pruned = (times[f"{kind}, {name}"] for kind in ("dense", "pruned"))
        ratio = excess * found["mac_ratio"]
        cells = [f"{dense:.2f}", f"{pruned:.2f}", f"{ratio:.3f}", f"{excess:.3f}"]
        rows.append([name, *cells])
    return table(heads, rows)


def large_checkpoint(found: dict[str, Any]) -> str:
    """Sizes and the peak of memory."""
    names = {
        "checkpoint_gb": "checkpoint [GB]",
        "lowered_gb": "lowered [GB]",
        "largest_tensor_gb": "largest tensor [GB]",
        "peak_gb": "peak of memory [GB]",
        "limit_gb": "2 GB and twice the largest tensor [GB]",
        "seconds": "time [s]",
    }
    return table(["", ""], [[text, f"{found[key]:g}"] for key, text in names.items()])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "int8-sst2": int8,
    "runtimes-minilm": runtimes,
    "large-checkpoint": large_checkpoint,
}


def with_tables(text: str) -> str:
    """`text` with the table of each file of results between its two comments."""
    for name, make in TABLES.items():
        marks = f"<!-- results {name} -->\n", f"<!-- end {name} -->"
        pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
        block = f"{marks[0]}\n{make(record.read(name))}\n{marks[1]}"
        # Backslashes in a table are no escapes.
        block = block.replace("\\", "\\\\")
        text, count = re.subn(pattern, block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE} has {count} places for the table {name}")
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
