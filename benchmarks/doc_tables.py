"""Tables of documents between comments: `python -m benchmarks.doc_tables` writes them.

Those of docs/targets.md come from the results of `benchmarks.int8`,
`benchmarks.runtimes` and `benchmarks.large_checkpoint`, those of docs/methods.md from
the results of `benchmarks.method_times` and `benchmarks.training_cost`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import record
from benchmarks.machine import ROOT
from benchmarks.markdown import table

DOCS = ROOT / "docs"


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


def training_cost(found: dict[str, Any]) -> str:
    """A step of every row: its time beside full fine-tuning and without gates."""
    heads = ["trained", "parameters", "step [ms]", "of all weights"]
    heads += ["of the same without gates", "peak of memory [MB]"]
    rows = found["records"]
    whole = rows[0]["step_ms"]
    return table(
        heads,
        [
            [
                row["row"],
                f"{row['trained']:,}",
                f"{row['step_ms']:.0f}",
                f"{row['step_ms'] / whole:.2f}",
                f"{row['over_same_without_gates']:.3f}"
                if row["over_same_without_gates"]
                else "",
                f"{row['peak_mb']:.0f}",
            ]
            for row in rows
        ],
    )


def compaction(found: dict[str, Any]) -> str:
    """What is left and how long it takes, independent gates beside shared ones."""
    heads = ["closed", "parameters left, rows and columns", "latency"]
    heads += ["parameters left, shared", "latency"]
    by_kind = {(row["closed"], row["coupling"]): row for row in found["records"]}
    closed = dict.fromkeys(share for share, _ in by_kind)
    pairs = [[by_kind[share, kind] for kind in ("none", "shared")] for share in closed]
    return table(
        heads,
        [
            [
                f"{pair[0]['closed']:.0%}",
                *(
                    cell
                    for row in pair
                    for cell in (f"{row['left']:.1%}", f"{row['relative']:.2f}")
                ),
            ]
            for pair in pairs
        ],
    )


def switching(found: dict[str, Any]) -> str:
    """Time of a switch by width."""
    heads = ["width", "S2FT [ms]", "LoRA [ms]", "all weights [ms]"]
    heads += ["of LoRA", "of all weights"]
    return table(
        heads,
        [
            [
                f"{row['width']:,}",
                f"{row['s2ft_ms']:.2f}",
                f"{row['lora_ms']:.2f}",
                f"{row['dense_ms']:.2f}",
                f"{row['relative']:.3f}",
                f"{row['relative_to_dense']:.3f}",
            ]
            for row in found["records"]
        ],
    )


Maker = Callable[[dict[str, Any]], str]

PAGES: Mapping[str, Mapping[str, Maker]] = {
    "targets": {
        "int8-sst2": int8,
        "runtimes-minilm": runtimes,
        "large-checkpoint": large_checkpoint,
    },
    "methods": {
        "training-cost": training_cost,
        "compaction": compaction,
        "switching": switching,
    },
}
"""By document: what makes the table of each file of results."""


def with_tables(page: str, text: str) -> str:
    """`text` of `page` with the tables of its results between their two comments."""
    for name, make in PAGES[page].items():
        marks = f"<!-- results {name} -->\n", f"<!-- end {name} -->"
        pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
        block = f"{marks[0]}\n{make(record.read(name))}\n{marks[1]}"
        # Backslashes in a table are no escapes.
        block = block.replace("\\", "\\\\")
        text, count = re.subn(pattern, block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{page}.md has {count} places for the table {name}")
    return text


def main() -> None:
    """Writes all of them."""
    for page in PAGES:
        file = DOCS / f"{page}.md"
        file.write_text(with_tables(page, file.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
