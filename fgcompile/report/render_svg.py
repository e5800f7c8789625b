"""SVG rendering: a small picture for a README, light and dark."""

from __future__ import annotations

from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.picture import Bar, block_bars
from fgcompile.report.templating import environment
from fgcompile.report.view import View

MOST_BARS = 40


def render_svg(diff: GraphDiff) -> str:
    """One bar per block: what stays, what goes, what comes."""
    bars = block_bars(diff)
    hidden = max(len(bars) - MOST_BARS, 0)
    shown = _most_changed(bars) if hidden else bars
    longest = max((len(bar.name) for bar in shown), default=0)
    return (
        environment()
        .get_template("report.svg")
        .render(
            view=View(diff), bars=shown, hidden=hidden, left=min(longest, 40) * 7 + 20
        )
    )


def _most_changed(bars: list[Bar]) -> list[Bar]:
    """The bars that changed most, in the model's order."""
    ranked = sorted(bars, key=lambda bar: -(bar.goes + bar.comes))[:MOST_BARS]
    return [bar for bar in bars if bar in ranked]
