"""Tables and plots of latency against the limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.cells import Parameters, Record, Result
from benchmarks.markdown import table

HEADLINE = ("llama-1b", 0.38, 0.25)
"""Of FineGates: model, part of its parameters removed, and of the CPU's time saved."""

AIMED = 40
"""What is removed [%] where the README shows the latency."""

_OPERATORS = 6
_ABOUT = """\
Heads and feed-forward channels are removed evenly, at random. `MACs` is the part of the
multiply-accumulates that is left: the limit for the latency, of which `latency` is the
part that is left in ONNX Runtime. FineGates removes rows and columns of each matrix by
itself, as many parameters as the papers count: `promised` is the part of the MACs that
their count leaves. `as published`: every column that is zero is gathered away; `where
they pay`: the same gates, but columns are gathered only where that saves time.
"""
_BRIEF = f"""\
Latency in ONNX Runtime, and multiply-accumulates (MACs), of a model without {AIMED} %
of its heads and feed-forward channels, as parts of those of the dense one; one row of
128 tokens or one picture on one thread.
"""
_PROFILES = """\
Where latency is more than 1.05 times the MACs (1.08 for llama-1b), where the excess
goes: milliseconds of an operator in the pruned model beyond the part of its dense time
that the MACs leave (in brackets: dense to pruned), medians of runs that took turns.
"""
_HEADS = (
    *("model", "removed", "rows x tokens", "threads", "dense ms"),
    *("parameters left", "MACs", "latency", "latency / MACs"),
    *("FineGates promised", "FineGates as published"),
    "FineGates gates, gathers only where they pay",
)

Found = list[tuple[Record, Result]]


def page(records: Sequence[Record]) -> str:
    """All cells, and the profiles of those over their limit."""
    found = _found(records)
    parts = [_ABOUT, table(_HEADS, [_row(record, result) for record, result in found])]
    states = {result["files"] for _, result in found}
    if len(states) > 1:
        parts.append(
            f"The files were built by {len(states)} states of the compiler: "
            f"{', '.join(sorted(states))}.\n"
        )
    parts.append(_against_headline(found))
    slow = [(record, result) for record, result in found if "profile" in result]
    if slow:
        heads = ("cell", "all", "where the excess goes [ms]")
        parts += [_PROFILES, table(heads, map(_profile, slow), 3)]
    return "\n".join([*filter(None, parts), "![latency](benchmarks/limit.svg)\n"])


def summary(records: Sequence[Record]) -> str:
    """One row, 128 tokens, one thread, as much removed as is aimed at."""
    heads = (*_HEADS[:1], *_HEADS[5:9], *_HEADS[10:])
    found = _found(records)
    rows = [_row(record, result) for record, result in found if _aimed(record)]
    picked = [(*row[:1], *row[5:9], *row[10:]) for row in rows]
    parts = (_BRIEF, table(heads, picked), _against_headline(found))
    return "\n".join(filter(None, parts))


def plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """Latency left against MACs left, one line a model."""
    from benchmarks.plotting import figure, save

    picture, axes = figure(2)
    found = [(r, f) for r, f in _found(records) if shown(r)]
    for model in dict.fromkeys(r.parameters["model"] for r, _ in found):
        own = [f["variants"] for r, f in found if r.parameters["model"] == model]
        for one, name, left in (
            (axes[0], "shared", "mac_ratio"),
            (axes[1], "gathers", "promised_mac_ratio"),
        ):
            points = sorted((v[name][left], v[name]["ratio"]) for v in own if name in v)
            if points:
                one.plot(*zip(*points, strict=True), marker="o", label=model)
    titles = ("shared gates", "FineGates as published")
    for one, title in zip(axes, titles, strict=True):
        one.plot((0, 1), (0, 1), "k--", linewidth=1, label="limit")
        one.set(xlabel="part of the MACs", ylabel="part of the latency", title=title)
        one.legend(fontsize=7)
    return [save(picture, folder / "limit.svg")]


def shown(cell: Record | Parameters) -> bool:
    """Whether the plot shows a cell: one row of 128 tokens, or a picture."""
    found = cell.parameters if isinstance(cell, Record) else cell
    return found["batch"] == found["threads"] == 1 and found["tokens"] in (128, 197)


def _aimed(record: Record) -> bool:
    return shown(record) and record.parameters["removed"] == AIMED


def _found(records: Sequence[Record]) -> Found:
    return [(r, r.result) for r in records if r.result is not None]


def _removed(result: Result) -> float:
    """Part of all parameters that shared gates remove."""
    dense, shared = (result["variants"][name] for name in ("dense", "shared"))
    return float(1 - shared["parameters"] / dense["parameters"])


def _against_headline(found: Found) -> str:
    """The cell that comes closest to what the paper removes, beside what it saves."""
    model, removed, saved = HEADLINE
    cells = [f for r, f in found if shown(r) and r.parameters["model"] == model]
    if not cells:
        return ""
    ours = min(cells, key=lambda result: abs(_removed(result) - removed))
    return (
        f"FineGates reports that up to {saved:.0%} of the CPU's time are saved with "
        f"{removed:.0%} of the parameters of a Llama of a billion removed. Here, with "
        f"{_removed(ours):.0%} of them removed, "
        f"{1 - ours['variants']['shared']['ratio']:.0%} are saved.\n"
    )


def _row(record: Record, result: Result) -> tuple[str, ...]:
    size, variants = record.parameters, result["variants"]
    dense, shared, fine = (variants.get(n) for n in ("dense", "shared", "finegates"))
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
        f"{fine['promised_mac_ratio']:.3f}" if fine else "",
        *(_ratio(variants.get(name)) for name in ("gathers", "finegates")),
    )


def _ratio(variant: Result | None) -> str:
    return "" if variant is None else f"{variant['ratio']:.3f}"


def _profile(each: tuple[Record, Result]) -> tuple[str, str, str]:
    record, result = each
    found = result["profile"]
    excess, dense, pruned = (found[name] for name in ("excess", "dense", "pruned"))
    texts = [
        f"{name} {more:+.2f} ({dense.get(name, 0):.2f} to {pruned.get(name, 0):.2f})"
        for name, more in list(excess.items())[:_OPERATORS]
    ]
    return record.key, f"{sum(excess.values()):+.2f}", "; ".join(texts)
