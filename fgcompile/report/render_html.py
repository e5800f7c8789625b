"""HTML rendering: one file, nothing from a network."""

from __future__ import annotations

from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.picture import module_bars
from fgcompile.report.templating import environment, plain, template_text
from fgcompile.report.view import View


def render_html(diff: GraphDiff) -> str:
    """A self-contained page: picture, searchable table, details; light and dark."""
    return (
        environment()
        .get_template("report.html")
        .render(
            view=View(diff),
            bars=module_bars(diff),
            groups={name: number for number, name in enumerate(_group_names(diff))},
            style=template_text("report.css"),
            script=template_text("report.js"),
            plain=plain,
        )
    )


def _group_names(diff: GraphDiff) -> list[str]:
    return [group.name for group in diff.groups]
