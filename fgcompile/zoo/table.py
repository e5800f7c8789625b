"""The zoo's results as text: a line each for the terminal, a table for the docs."""

from __future__ import annotations

from collections.abc import Iterable

from fgcompile.zoo.closing import Closing, Result

HEADER = """# Supported models

Every model below was built with random weights. Half of the units of each kind of
group were closed at random, one kind after the other, and the model was lowered: `fx`
computed what the model's own code does with these units closed, at several batch sizes
and lengths, with and without padding. In the row *all*, other units of all kinds were
closed together, and the ONNX file computed the same in onnxruntime. *Removed* is the
share of the closed units' parameters that really went; where it is less than 100 %, the
reason is below. *No gate*: gates go on what modules take and return, and no module
takes or returns the units of these groups.

No code of fgcompile knows any of these models. This page is made by
`python -m fgcompile.zoo --onnx --markdown docs/supported-models.md`.

"""


def line(result: Result) -> str:
    """One result on one line, its notes below."""
    if result.error:
        return f"{result.name:28} FAILED {result.error}"
    parts = [f"{result.name:28} {result.seconds:6.1f} s"]
    parts += [_cell(closing) for closing in result.closings]
    notes = [f"    {note}" for c in result.closings for note in c.notes]
    return "\n".join(["  ".join(parts), *notes])


def _cell(closing: Closing) -> str:
    if closing.error:
        return f"{closing.kind} FAILED {closing.error}"
    if not closing.groups:
        return f"{closing.kind} no gate"
    onnx = "" if closing.onnx == "-" else f" onnx {closing.onnx}"
    return f"{closing.kind} {closing.share:.0%} ({closing.difference:.0e}){onnx}"


def markdown(results: Iterable[Result]) -> str:
    """The page `docs/supported-models.md`."""
    results = list(results)
    rows = [_row(result, c) for result in results for c in result.closings]
    rows += [f"| {r.name} | | | | | | {r.error} |" for r in results if r.error]
    notes = [
        f"- {result.name}, {note}"
        for result in results
        for c in result.closings
        for note in c.notes
    ]
    return "\n".join(
        [
            HEADER + "| model | kind | groups | fx | onnx | parameters | removed |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "## Closed units that stayed",
            "",
            *(notes or ["None."]),
            "",
        ]
    )


def _row(result: Result, closing: Closing) -> str:
    if closing.error:
        return f"| {result.name} | {closing.kind} | | {closing.error} | | | |"
    if not closing.groups:
        return f"| {result.name} | {closing.kind} | 0 | no gate | | | |"
    return (
        f"| {result.name} | {closing.kind} | {closing.groups} | equal | "
        f"{closing.onnx} | {closing.before:,} -> {closing.after:,} | "
        f"{min(closing.share, 1):.0%} |"
    )
