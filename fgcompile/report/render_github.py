"""GitHub rendering: annotations for findings, and outputs for later steps.

Workflow commands annotate a pull request; GitHub shows at most ten per step, so only
findings become annotations and never the body of the diff.
"""

from __future__ import annotations

from collections.abc import Sequence

from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.templating import plain
from fgcompile.report.view import View

_MOST = 10


def render_github(diff: GraphDiff, max_chars: int) -> str:
    """Workflow commands, one per line, followed by the Markdown report."""
    return "".join(f"{line}\n" for line in workflow_commands(diff)) + diff.to_markdown(
        max_chars
    )


def workflow_commands(diff: GraphDiff) -> list[str]:
    """At most ten workflow commands: what must not be overlooked."""
    title = View(diff).title
    errors = [
        f"budget {b.measure} {b.limit} exceeded: {b.actual}"
        for b in diff.verdict.budgets
        if not b.ok
    ]
    errors += [
        f"{c.side} {c.name} {c.kind}: {c.before or 'none'} -> {c.after or 'none'}"
        for c in diff.interface
        if c.breaking
    ]
    verified = diff.verdict.verified
    if verified is not None and not verified.ok:
        errors.insert(0, f"max difference {verified.max_difference:.1e}")
    warnings = [note.text for note in diff.notes if note.level == "warning"]
    commands = [_command("error", title, text) for text in errors]
    commands += [_command("warning", title, text) for text in warnings]
    return commands[:_MOST]


def step_outputs(diffs: Sequence[GraphDiff]) -> str:
    """Lines for the file that $GITHUB_OUTPUT names, about all reports together."""
    facts = {
        "differs": not all(diff.same for diff in diffs),
        "breaking": any(diff.breaking for diff in diffs),
        "within-budget": all(diff.verdict.within_budget for diff in diffs),
    }
    return "".join(f"{name}={str(value).lower()}\n" for name, value in facts.items())


def _command(level: str, title: str, text: str) -> str:
    """A workflow command whose text cannot end it or start another."""
    heading = _escaped(f"fgcompile {title}").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={heading}::{_escaped(text)}"


def _escaped(text: str) -> str:
    return plain(text).replace("%", "%25")
