"""Tables and plots of compile cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import Record, Result
from benchmarks.markdown import table

STAGES = ("capture", "analyse", "insert", "eliminate", "export", "verify")
DENSE = ("torch.export", "torch.onnx.export")
TIME, MEMORY = 3.0, 1.5
"""What is aimed at: `lower` against the dense exports, and against the weights."""

FIXED_WIDTH, FIXED_LAYERS = 1024, 16
"""What does not grow in the two pictures of growth."""

_BRIEF = """\
`lower(model, "onnx")` of a model with half of its units closed, verification included,
beside `torch.export` and `torch.onnx.export` of the dense model; one thread.
"""

Found = list[tuple[Record, Result]]


def page(records: Sequence[Record]) -> str:
    """All stages, then the growth of analysis."""
    full, alone = _split(records)
    parts = [
        "Half of all units are closed; one thread. A stage has its seconds, and the "
        "memory [MB] that it took at most beyond what was there before. `insert` has "
        "a capture and an analysis of its own. `lower` is capture, elimination, export "
        "to ONNX and verification of both; the aim is at most "
        f"{TIME:g} times the dense model's two exports, and {MEMORY:g} times its "
        "weights.\n",
        table(
            ("model", "parameters", *DENSE, *STAGES, "lower", "/ exports", "/ weights"),
            map(_stage_row, full),
        ),
        "![stages](benchmarks/compile.svg)\n",
    ]
    if alone:
        parts += [
            "Analysis alone, of Llamas without weights (on the meta device):\n",
            table(
                ("width", "layers", "parameters", "groups", "capture", "analyse"),
                map(_analysis_row, alone),
                left=2,
            ),
            "![growth](benchmarks/compile-growth.svg)\n",
        ]
    return "\n".join(parts)


def summary(records: Sequence[Record]) -> str:
    """How long `lower` takes, against the dense model's own exports."""
    rows = [
        (
            record.parameters["model"],
            _count(result["parameters"]),
            f"{_exports(result):.1f} s",
            f"{result['seconds']['lower']:.1f} s",
            f"{_time_ratio(result):.2f}",
            f"{_memory_ratio(result):.2f}",
        )
        for record, result in _split(records)[0]
    ]
    heads = ("model", "parameters", "dense export", "lower", "ratio")
    return "\n".join([_BRIEF, table((*heads, "memory / weights"), rows)])


def plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """Seconds against parameters, and against layers and width."""
    full, alone = _split(records)
    files = [_stages_plot(full, folder)] if full else []
    return files + ([_growth_plot(alone, folder)] if alone else [])


def _stages_plot(full: Found, folder: Path) -> Path:
    """Every stage, beside the dense model's exports."""
    from benchmarks.plotting import figure, save

    picture, (axes,) = figure()
    for name in (*STAGES, "lower"):
        points = [(r["parameters"], r["seconds"][name]) for _, r in full]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    baseline = [(r["parameters"], _exports(r)) for _, r in full]
    axes.plot(*zip(*baseline, strict=True), "k--", label="dense exports")
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="s")
    axes.legend(fontsize=7)
    return save(picture, folder / "compile.svg")


def _growth_plot(alone: Found, folder: Path) -> Path:
    """Capture and analysis against layers at one width, and the other way round."""
    from benchmarks.plotting import figure, save

    picture, axes = figure(2)
    fixed = (("layers", "width", FIXED_WIDTH), ("width", "layers", FIXED_LAYERS))
    for one, (grows, stays, size) in zip(axes, fixed, strict=True):
        found = [
            (record.parameters[grows], result["seconds"])
            for record, result in alone
            if record.parameters[stays] == size
        ]
        for name in ("capture", "analyse"):
            points = sorted((each, seconds[name]) for each, seconds in found)
            if points:
                one.plot(*zip(*points, strict=True), marker="o", label=name)
        one.set(xlabel=grows, ylabel="s", title=f"{stays} {size}", ylim=(0, None))
        one.legend(fontsize=7)
    return save(picture, folder / "compile-growth.svg")


def _split(records: Sequence[Record]) -> tuple[Found, Found]:
    found = [(r, r.result) for r in records if r.result is not None]
    full = [each for each in found if "model" in each[0].parameters]
    return full, [each for each in found if "model" not in each[0].parameters]


def _stage_row(each: tuple[Record, Result]) -> tuple[str, ...]:
    record, result = each
    return (
        record.parameters["model"],
        _count(result["parameters"]),
        *_costs(result, (*DENSE, *STAGES, "lower")),
        f"{_time_ratio(result):.2f}",
        f"{_memory_ratio(result):.2f}",
    )


def _analysis_row(each: tuple[Record, Result]) -> tuple[str, ...]:
    record, result = each
    size = record.parameters
    return (
        str(size["width"]),
        str(size["layers"]),
        _count(result["parameters"]),
        str(result["groups"]),
        *_costs(result, ("capture", "analyse")),
    )


def _costs(result: Result, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield f"{result['seconds'][name]:.2f} s, {result['megabytes'][name]:.0f} MB"


def _exports(result: dict[str, Any]) -> float:
    return sum(result["seconds"][name] for name in DENSE)


def _time_ratio(result: Result) -> float:
    return result["seconds"]["lower"] / _exports(result)


def _memory_ratio(result: Result) -> float:
    return result["megabytes"]["lower"] / result["weight_megabytes"]


def _count(parameters: int) -> str:
    if parameters > 1e8:
        return f"{parameters / 1e9:.2f} B"
    return f"{parameters / 1e6:.1f} M"
