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
loss on 156 stories of TinyStories that no method was trained on, in nats a token, by
the level that was asked for. In brackets is what is gone of all parameters of the
model, embeddings among them. FineGates as published and PST have no budget to meet:
their setting is the level, and the brackets say what became of it. FineGates count each
row and column by itself (*counted*, of all rows and columns); few of them meet in whole
units. The others meet the level within one unit. One seed. Made by
`python -m benchmarks.stories --page` from `benchmarks/results/stories.json`.

Training takes 1,600 rows of 256 tokens that the dense model wrote itself, each once.
With four fifths of the stories instead, eight times over, the dense model went from
1.635 to 1.876 on the rest: so little text would have measured what methods learn by
heart. All methods train on the same rows; the loss of the dense model that trained on
them says what they cost by themselves. Weights train at 5e-4 and few parameters at
5e-3; PST is there with both, as its matrices are few but move weights by more than
their rate. It is better at the lower one up to 20%, and worse from 30% on.
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
    return _words(runs[0]) if runs else "not run"


def _words(run: dict[str, Any]) -> str:
    gone = f"{run['removed_share']:.1%}"
    if "counted_removed" in run:
        gone += f", {run['counted_removed']:.1%} counted"
    return f"{run['loss']:.3f} ({gone})"


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
