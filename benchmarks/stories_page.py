"""The page and the plot of `benchmarks.stories`, from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import table
from benchmarks.plotting import figure, save

DENSE = "dense, trained on"
"""Nothing is removed from this one."""

PICTURE = "stories.svg"

_HEAD = """\
# Loss against removed parameters

stories260K, a Llama of 260 thousand parameters, after as many steps with every method:
loss on stories that nothing was trained on, in nats a token, by the level that was
asked for. In brackets is what is gone of all parameters of the model, embeddings among
them. FineGates as published and PST have no budget to meet: their setting is the level,
and the brackets say what became of it. The others meet the level within one unit. One
seed. Made by `python -m benchmarks.stories --page` from
`benchmarks/results/stories.json`.
"""


def text(found: dict[str, Any], methods: Sequence[str], levels: Sequence[float]) -> str:
    """docs/stories.md; runs that are missing are called so."""
    rows = [(m, *(_cell(found, m, level) for level in levels)) for m in methods]
    heads = ("method", *(f"{level:.0%}" for level in levels))
    trained = [f"{run['loss']:.3f}" for run in _runs(found, DENSE)] or ["not run"]
    dense = f"{found['dense_loss']:.3f}" if "dense_loss" in found else "not run"
    parts = [_HEAD, f"Dense: {dense} as it is, {trained[0]} trained on for as long.\n"]
    parts.append(table(heads, rows))
    if found["runs"]:
        parts.append(f"![Loss over removed parameters](benchmarks/{PICTURE})\n")
    return "\n".join(parts)


def _cell(found: dict[str, Any], method: str, level: float) -> str:
    runs = [run for run in _runs(found, method) if run["level"] == level]
    words = [f"{r['loss']:.3f} ({r['removed_share']:.1%})" for r in runs]
    return words[0] if words else "not run"


def _runs(found: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return [run for run in found["runs"] if run["method"] == method]


def picture(found: dict[str, Any], methods: Sequence[str], folder: Path) -> Path:
    """Loss over the removed share of all parameters, one line a method; the file."""
    drawn, (axes,) = figure(scale=1.6)
    for method in methods:
        runs = _runs(found, method)
        points = sorted((100 * run["removed_share"], run["loss"]) for run in runs)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=method)
    axes.axhline(found["dense_loss"], ls=":", color="black", label="dense")
    for run in _runs(found, DENSE):
        axes.axhline(run["loss"], ls="--", color="black", label=DENSE)
    axes.set(xlabel="parameters of the model removed [%]", ylabel="loss [nats a token]")
    axes.legend(fontsize="x-small")
    folder.mkdir(parents=True, exist_ok=True)
    return save(drawn, folder / PICTURE)
