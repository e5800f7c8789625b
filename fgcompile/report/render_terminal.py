"""Terminal rendering, by rich."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.templating import plain
from fgcompile.report.view import View

_TONES = {"good": "green", "bad": "bold red", "quiet": "yellow", "": ""}


def render_terminal(diff: GraphDiff, width: int = 100, color: bool = False) -> str:
    """Text of lines no longer than `width`, with ANSI colours if `color`."""
    stream = StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        legacy_windows=False,
        highlight=False,
        emoji=False,
        _environ={},
    )
    console.print(as_renderable(diff))
    lines = stream.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def as_renderable(diff: GraphDiff) -> Group:
    """The report for any rich console."""
    view = View(diff)
    parts: list[Text | Table] = [
        Text.assemble((plain(view.title), "bold"), f": {view.headline}")
    ]
    for fact in view.facts:
        line = Text(f"  {fact.label}: ", style="dim")
        text = plain(f"{fact.text} {fact.names}".rstrip())
        parts.append(line.append(Text(text, style=_TONES[fact.tone])))
    if view.interface:
        sides = ("interface", "name", "what", "before", "after", "effect")
        parts.append(_table(sides, view.interface))
    if view.variants:
        heads = ("file", "size", "time", "relative difference", "from")
        parts.append(_table(heads, view.variants))
    if view.groups:
        parts.append(_groups(view))
    if view.modules:
        parts += [Text(f"\n{view.operations}", style="bold"), *_modules(view)]
    if view.tensors:
        parts.append(_table(("other tensor", "change"), view.tensors))
    if view.pinned:
        columns = ("pinned", "units", "why", "where", "remedy")
        rows = [
            (pin.name, pin.units, pin.reason, pin.where, pin.remedy)
            for pin in view.pinned
        ]
        parts.append(_table(columns, rows))
    for note in diff.notes:
        subject = f"{note.subject}: " if note.subject else ""
        style = "bold yellow" if note.level == "warning" else "dim"
        parts.append(Text(plain(f"note: {subject}{note.text}"), style=style))
    return Group(*parts)


def _groups(view: View) -> Table:
    heads = ("coupled group", "kind", "units", "change", "couples", "parameters")
    rows = [
        (
            row.name,
            row.kind,
            f"{row.before} -> {row.after}",
            row.change,
            row.couples,
            row.parameters,
        )
        for row in view.groups
    ]
    return _table(heads, rows)


def _modules(view: View) -> list[Text]:
    lines = []
    for row in view.modules:
        lines.append(Text(f"  {plain(row.name)}"))
        for sign, style, texts in (
            ("-", "red", [", ".join(row.removed)]),
            ("+", "green", [", ".join(row.added)]),
            ("~", "yellow", row.changed),
            (" ", "dim", row.resized),
        ):
            texts = [text for text in texts if text]
            lines += [Text(f"    {sign} {plain(t)}", style=style) for t in texts]
    return lines


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(escape(plain(text)) for text in row))
    return table
