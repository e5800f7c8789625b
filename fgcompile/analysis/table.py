"""An analysis as text: the table of groups, and why one may or may not shrink."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from fgcompile.analysis.coupling import Analysis, CoupledGroup
from fgcompile.analysis.steps import Reason
from fgcompile.errors import CouplingError
from fgcompile.program import module_path, source_line

WIDTH = 160
MOST = 12
"""Members, or reasons, that a text lists at most."""


def table(analysis: Analysis) -> str:
    """All groups in order of depth: those that may shrink, then those that may not."""
    free = [group for group in analysis.groups if not group.reasons]
    parts = [_render(_free_table(free))]
    if analysis.pinned:
        parts.append(_render(_pinned_table(analysis.pinned)))
    shown = f"{analysis.parameters:,} parameters, {analysis.macs:,} MACs per example"
    return "\n".join([*parts, shown])


def explanation(analysis: Analysis, name: str) -> str:
    """Why the units of a group, parameter or module may or may not shrink.

    Raises:
        CouplingError: If nothing has that name.
    """
    groups = [group for group in analysis.groups if _matches(group, name)]
    if not groups:
        raise CouplingError(
            f"no group, parameter or module is called {name!r}\n"
            "  print(analysis) lists all groups and their members."
        )
    return "\n\n".join("\n".join(_explained(group)) for group in groups)


def describe(reason: Reason) -> str:
    """One line: what pins, and where.

    The place is a node of the graph, the module and the user's line that made it.
    """
    node = reason.node
    if node.op == "output":
        return reason.text
    places = [f"%{node.name}", module_path(node), source_line(node)]
    return f"{reason.text} at {', '.join(place for place in places if place)}"


def _free_table(groups: Iterable[CoupledGroup]) -> Table:
    shown = _empty("may shrink", "group", "kind")
    for heading in ("units", "members", "parameters/unit", "MACs/unit"):
        shown.add_column(heading, justify="right")
    for group in groups:
        shown.add_row(
            group.name,
            group.kind,
            f"{group.size:,}",
            f"{len(group.members)}",
            _span(group.parameters.tolist()),
            _span(group.macs.tolist()),
        )
    return shown


def _pinned_table(groups: Iterable[CoupledGroup]) -> Table:
    shown = _empty("stays whole", "group", "kind")
    shown.add_column("units", justify="right")
    shown.add_column("because")
    for group in groups:
        assert group.pinned is not None
        row = (group.name, group.kind, f"{group.size:,}", describe(group.pinned))
        shown.add_row(*row)
    return shown


def _empty(title: str, *headings: str) -> Table:
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        shown.add_column(heading)
    return shown


def _render(shown: Table) -> str:
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, color_system=None, emoji=False)
    console.print(shown, markup=False, highlight=False)
    lines = text.getvalue().splitlines()
    return os.linesep.join(line.rstrip() for line in lines)


def _span(values: list[float]) -> str:
    """The value, or the least and the greatest."""
    low, high = min(values), max(values)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def _matches(group: CoupledGroup, name: str) -> bool:
    """Whether `name` is the group, one of its parameters or dims, or a module above."""
    if group.name == name or group.name.startswith(f"{name}."):
        return True
    members = {(m.parameter, f"{m.parameter}:{m.dim}") for m in group.members}
    return any(name in member or member[0].startswith(f"{name}.") for member in members)


def _explained(group: CoupledGroup) -> Iterator[str]:
    verb = "stays whole" if group.reasons else "may shrink"
    yield f"{group.name}: {group.kind}, {group.size:,} units, {verb}"
    for reason in _capped([*group.reasons]):
        if isinstance(reason, str):
            yield reason
            continue
        yield f"  because {describe(reason)}"
        if reason.remedy or reason.hint:
            yield f"    {reason.remedy or reason.hint}"
    if not group.reasons:
        yield (
            f"  each unit saves {_span(group.parameters.tolist())} parameters, "
            f"{_span(group.macs.tolist())} MACs per example"
        )
    for member in _capped([*group.members]):
        if isinstance(member, str):
            yield member
            continue
        held = int((member.index >= 0).sum())
        part = "" if held == len(member.index) else f" ({held} of {len(member.index)})"
        yield f"  couples {member.parameter}:{member.dim}{part}"


def _capped(items: list) -> list:  # type: ignore[type-arg]
    if len(items) <= MOST:
        return items
    return [*items[:MOST], f"  ... and {len(items) - MOST} more"]
