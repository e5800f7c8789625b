"""Tables of what peers make of the same zeros."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.cells import Record, Result
from benchmarks.markdown import table


def page(records: Sequence[Record]) -> str:
    """All models and peers, then the messages of those that failed."""
    found = [(r, r.result) for r in records if r.result is not None]
    heads = (
        *("model", "peer", "runs", "exact", "difference", "removed of what is zero"),
        *("seconds", "MB beyond the model", "latency"),
    )
    parts = [
        "In a base-sized model with random weights half of the heads and of the "
        "feed-forward channels are zero in every layer, with all that belongs to them; "
        "each tool is to remove them and to write an ONNX file. Those that choose by "
        "magnitude choose the zeros. `exact`: the file computes what the masked model "
        "does. `seconds` and memory are of pruning and export together, ours with "
        "verification. `latency`: of the file, as part of the dense model's, one row "
        "of 128 tokens or one picture on one thread.\n",
        table(heads, [_row(record, result) for record, result in found], left=2),
    ]
    failed = [(r, f) for r, f in found if f.get("message") or f.get("note")]
    if failed:
        rows = [
            (r.parameters["model"], r.parameters["peer"], f.get("message") or f["note"])
            for r, f in failed
        ]
        parts.append(table(("model", "peer", "what it said"), rows, left=3))
    return "\n".join(parts)


def summary(records: Sequence[Record]) -> str:
    """One cell a model and peer: what became of it."""
    found = {
        (r.parameters["model"], r.parameters["peer"]): r.result
        for r in records
        if r.result is not None
    }
    models = list(dict.fromkeys(model for model, _ in found))
    peers = list(dict.fromkeys(peer for _, peer in found))
    rows = [
        (peer, *(_verdict(found.get((model, peer))) for model in models))
        for peer in peers
    ]
    return table(("", *models), rows)


def plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """None: the table says it all."""
    return []


def _row(record: Record, result: Result) -> tuple[str, ...]:
    start = record.parameters["model"], _name(record, result)
    if not result["runs"]:
        return (*start, "no", *[""] * 6)
    return (
        *start,
        "yes",
        "yes" if result["exact"] else "NO",
        f"{result['difference']:.1e}",
        _share(result),
        f"{result['seconds']:.1f}",
        f"{result['megabytes']:.0f}",
        f"{result['latency_ratio']:.3f}",
    )


def _name(record: Record, result: Result) -> str:
    return f"{record.parameters['peer']} {result['version']}".strip()


def _share(result: Result) -> str:
    return f"{result['removed'] / result['removable']:.1%}"


def _verdict(result: Result | None) -> str:
    if result is None:
        return "not measured"
    if not result["runs"]:
        late = "no result after" in result["message"]
        return "gave no result in time" if late else "fails"
    right = "exact" if result["exact"] else "WRONG"
    return (
        f"{right}, {_share(result)} removed, {result['seconds']:.0f} s, "
        f"latency x {result['latency_ratio']:.2f}"
    )
