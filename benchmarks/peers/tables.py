"""Tables of what tools make of the same zeros."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.cells import Record, Result
from benchmarks.markdown import table
from benchmarks.peers.rows import HANG, LIMIT, OURS, ROWS, UNVERIFIED

_HANGS = "; ".join(f"{r.name} on {m}" for r in ROWS for m in r.hangs)
_ABOUT = f"""\
In a base-sized model with random weights half of the heads and of the feed-forward
channels are zero in every layer, with all that belongs to them; each tool is to remove
them and to write an ONNX file. Those that choose by magnitude choose the zeros.
`exact`: the file computes what the masked model does. `seconds` (by the wall),
`processor` (seconds of all its threads) and memory are of pruning and export together,
medians of fresh processes that took turns. Peers do not verify what they write; ours is
there with and without. `latency`: of the file, as part of the dense model's as torch
exports it, and as we do; one row of 128 tokens or one picture on one thread. A run is
given up after {LIMIT:.0f} s, or {HANG:.0f} s where it was never seen to end ({_HANGS}).
"""
_BRIEF = """\
Half of the heads and of the feed-forward channels of a base-sized model are zero; each
tool is to remove them and to write an ONNX file. How much of what is zero it removed,
the seconds that it took, and the latency of the file beside that of the dense model, as
torch exports it.
"""
_VERDICT = """\
Ours against each peer that gives a right file. In brackets: parameters that ours
removes, and seconds that it takes, over those of the peer.
"""
_HEADS = (
    *("model", "tool", "runs", "exact", "difference", "removed of what is zero"),
    *("seconds", "processor", "MB beyond the model", "MB of the file"),
    *("latency / torch's dense", "latency / our dense"),
)
_VERDICT_HEADS = (
    *("model", "against", "ours is exact", "removes at least as much"),
    *("compiles no slower", "no slower, not verified"),
)

Named = tuple[str, str, Result]


def page(records: Sequence[Record]) -> str:
    """All models and tools, ours against each, and the messages of what failed."""
    rows = list(_rows(records))
    parts = [_ABOUT, table(_HEADS, map(_row, rows), left=2)]
    verdicts = list(_verdicts(records))
    if verdicts:
        parts += [_VERDICT, table(_VERDICT_HEADS, verdicts, left=6)]
    said = [
        (model, name, row.get("message") or row["note"])
        for model, name, row in rows
        if row.get("message") or row.get("note")
    ]
    if said:
        parts.append(table(("model", "tool", "what it said"), said, left=3))
    return "\n".join(parts)


def summary(records: Sequence[Record]) -> str:
    """One cell a model and tool: what became of it."""
    found = {(model, name): row for model, name, row in _rows(records)}
    models = list(dict.fromkeys(model for model, _ in found))
    names = [row.name for row in ROWS if any((m, row.name) in found for m in models)]
    rows = [(name, *(_outcome(found.get((m, name))) for m in models)) for name in names]
    return "\n".join([_BRIEF, table(("", *models), rows), _exactness(found.values())])


def plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """None: the table says it all."""
    return []


def _rows(records: Sequence[Record]) -> Iterator[Named]:
    for record in records:
        if record.result is not None:
            for name, row in record.result["rows"].items():
                yield record.parameters["model"], name, row


def _row(named: Named) -> tuple[str, ...]:
    model, name, row = named
    start = model, f"{name} {row['version']}".strip()
    if not row["runs"]:
        return (*start, "no", *[""] * (len(_HEADS) - 3))
    return (
        *start,
        "yes",
        "yes" if row["exact"] else "NO",
        f"{row['difference']:.1e}",
        _share(row),
        f"{row['seconds']:.1f}",
        f"{row['process_seconds']:.1f}",
        f"{row['megabytes']:.0f}",
        f"{row['megabytes_of_file']:.0f}",
        f"{row['latency_ratio']:.3f}",
        f"{row['latency_ratio_to_ours']:.3f}",
    )


def _verdicts(records: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """Whether ours is exact, removes as much and takes no longer, peer by peer."""
    for record in records:
        rows = (record.result or {"rows": {}})["rows"]
        peers = [name for name in rows if name not in (OURS, UNVERIFIED)]
        for name in (n for n in peers if rows[n]["runs"] and rows[n]["exact"]):
            peer, ours = rows[name], rows[OURS]
            removed = (
                f"{ours['removed'] / peer['removed']:.2f} x"
                if peer["removed"] > 0
                else "it removes none"
            )
            slower, slow = (
                rows[n]["seconds"] / peer["seconds"] for n in (OURS, UNVERIFIED)
            )
            yield (
                *(record.parameters["model"], name, _yes(ours["exact"])),
                f"{_yes(ours['removed'] >= peer['removed'])} ({removed})",
                *(f"{_yes(r <= 1)} ({r:.2f} x)" for r in (slower, slow)),
            )


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def _share(row: Result) -> str:
    # A file has some constants that are none of the model: a few below nothing.
    return f"{max(0, row['removed']) / row['removable']:.1%}"


def _outcome(row: Result | None) -> str:
    if row is None:
        return ""
    if not row["runs"]:
        late = "no result after" in row["message"]
        return "gave no result in time" if late else "fails"
    wrong = "" if row["exact"] else "**wrong**, "
    return f"{wrong}{_share(row)}, {row['seconds']:.0f} s, x {row['latency_ratio']:.2f}"


def _exactness(rows: Iterable[Result]) -> str:
    """Whether the files compute what the masked model does."""
    exact = [row["exact"] for row in rows if row["runs"]]
    if all(exact):
        return (
            "Every file that was written computes what the model with the zeros does.\n"
        )
    return f"{exact.count(False)} of {len(exact)} files compute something else.\n"
