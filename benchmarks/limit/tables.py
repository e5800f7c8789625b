"""Tables and plots of latency against the limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.cells import Record, Result
from benchmarks.markdown import table

_OPERATORS = 6

Found = list[tuple[Record, Result]]


def page(records: Sequence[Record]) -> str:
    """All cells, and the profiles of those over their limit."""
    found = _found(records)
    parts = [
        "Heads and feed-forward channels are removed evenly, at random. `MACs` is the "
        "part of the multiply-accumulates that is left: the limit for the latency, of "
        "which `latency` is the part that is left in ONNX Runtime. `FineGates` removes "
        "rows and columns of each matrix by itself, as published, as many parameters "
        "as the papers count: `promised` is the part of the MACs that their count "
        "leaves, `latency` what is reached with gathers where they pay, `all gathers` "
        "with one wherever a column is zero.\n",
        table(
            (
                *("model", "removed", "rows x tokens", "threads", "dense ms"),
                *("parameters left", "MACs", "latency", "latency / MACs"),
                *("FineGates promised", "FineGates latency", "all gathers"),
            ),
            [_row(record, result) for record, result in found],
        ),
    ]
    slow = [(record, result) for record, result in found if "profile" in result]
    if slow:
        parts += [
            "Where latency is more than 1.05 times the MACs (1.08 for llama-1b), the "
            "operators that take longest, in milliseconds:\n",
            table(
                ("cell", "operator: dense to pruned (ratio)"), map(_profile, slow), 2
            ),
        ]
    return "\n".join([*parts, "![latency against MACs](benchmarks/limit.svg)\n"])


def summary(records: Sequence[Record]) -> str:
    """One row, 128 tokens, one thread."""
    heads = (
        *("model", "removed", "parameters left", "MACs", "latency", "latency / MACs"),
        "FineGates as published",
    )
    rows = []
    for record, result in _found(records):
        if _shown(record):
            dense, shared, other = (
                result["variants"][name] for name in ("dense", "shared", "finegates")
            )
            rows.append(
                (
                    record.parameters["model"],
                    f"{record.parameters['removed']} %",
                    f"{shared['parameters'] / dense['parameters']:.1%}",
                    f"{shared['mac_ratio']:.3f}",
                    f"{shared['ratio']:.3f}",
                    f"{result['over']:.3f}",
                    f"{other['ratio']:.3f}",
                )
            )
    return table(heads, rows)


def plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """Latency left against MACs left, one line a model."""
    from benchmarks.plotting import figure, save

    picture, axes = figure(2)
    found = [(r, f) for r, f in _found(records) if _shown(r)]
    for model in dict.fromkeys(r.parameters["model"] for r, _ in found):
        own = [f["variants"] for r, f in found if r.parameters["model"] == model]
        for one, name, left in (
            (axes[0], "shared", "mac_ratio"),
            (axes[1], "finegates", "promised_mac_ratio"),
        ):
            points = sorted((v[name][left], v[name]["ratio"]) for v in own)
            one.plot(*zip(*points, strict=True), marker="o", label=model)
    for one, title in zip(axes, ("shared gates", "FineGates"), strict=True):
        one.plot((0, 1), (0, 1), "k--", linewidth=1, label="limit")
        one.set(xlabel="part of the MACs", ylabel="part of the latency", title=title)
        one.legend(fontsize=7)
    return [save(picture, folder / "limit.svg")]


def _found(records: Sequence[Record]) -> Found:
    return [(r, r.result) for r in records if r.result is not None]


def _shown(record: Record) -> bool:
    found = record.parameters
    return found["batch"] == found["threads"] == 1 and found["tokens"] in (128, 197)


def _row(record: Record, result: Result) -> tuple[str, ...]:
    size, variants = record.parameters, result["variants"]
    dense, shared, other = (variants[n] for n in ("dense", "shared", "finegates"))
    gathers = variants.get("gathers")
    return (
        size["model"],
        f"{size['removed']} %",
        f"{size['batch']} x {size['tokens']}",
        str(size["threads"]),
        f"{dense['milliseconds']:.2f}",
        f"{shared['parameters'] / dense['parameters']:.1%}",
        f"{shared['mac_ratio']:.3f}",
        f"{shared['ratio']:.3f}",
        f"{result['over']:.3f}",
        f"{other['promised_mac_ratio']:.3f}",
        f"{other['ratio']:.3f}",
        "" if gathers is None else f"{gathers['ratio']:.3f}",
    )


def _profile(each: tuple[Record, Result]) -> tuple[str, str]:
    record, result = each
    dense, pruned = result["profile"]["dense"], result["profile"]["shared"]
    names = sorted(pruned, key=lambda name: -pruned[name])[:_OPERATORS]
    texts = [
        f"{name}: {dense.get(name, 0):.2f} to {pruned[name]:.2f}"
        + (f" ({pruned[name] / dense[name]:.2f})" if dense.get(name) else "")
        for name in names
    ]
    return record.key, "; ".join(texts)
