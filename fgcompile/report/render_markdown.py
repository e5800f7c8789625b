"""Markdown rendering, within the limits of a GitHub comment."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.templating import environment, plain
from fgcompile.report.view import View

MARKER = "<!-- fgcompile-diff -->"
COMMENT_LIMIT = 65_536
_ROWS = (10_000, 400, 200, 100, 60, 40, 25, 15, 8, 4, 2, 1)
_CUT = "\n\n_The rest was cut to {limit:,} characters; the JSON rendering has all._\n"


def render_markdown(diff: GraphDiff, max_chars: int = COMMENT_LIMIT) -> str:
    """The report as Markdown of at most `max_chars` characters.

    Tables lose their last rows first, and say so; the verdict, the interface and
    the largest tables' heads always stay. The first line is a hidden marker, by
    which a bot finds the comment that it updates.
    """
    view = View(diff)
    for limit in _ROWS:
        text = _render(view, limit)
        if len(text) <= max_chars:
            return text
    notice = _CUT.format(limit=max_chars)
    if len(notice) >= max_chars:
        return text[:max_chars]
    head = text[: max_chars - len(notice)].rpartition("\n")[0]
    return (head + notice)[:max_chars]


def _render(view: View, limit: int) -> str:
    env = environment()
    env.filters["fenced"] = _fenced
    text = env.get_template("report.md").render(
        view=view,
        limit=limit,
        marker=MARKER,
        more=lambda rows: _more(rows, limit),
        tones={"good": "", "bad": "⚠️ ", "quiet": "", "": ""},
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _more(rows: Sequence[object], limit: int) -> str:
    rest = len(rows) - limit
    return (
        f"\n_and {rest:,} more rows; the JSON rendering has all_\n" if rest > 0 else ""
    )


def _fenced(text: str) -> str:
    """Text that cannot end the code block it stands in."""
    return plain(text).replace("```", "'''")
