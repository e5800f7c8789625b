"""What changed between two models, as one object with several renderings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fgcompile.report.changes import (
    GroupChange,
    InterfaceChange,
    Layer,
    NodeChange,
    Note,
    ParameterChange,
    Pinned,
    Variant,
    Verdict,
    Verification,
)

SCHEMA_VERSION = "1.1"


@dataclass(frozen=True)
class GraphDiff:
    """The difference between two models; equal inputs give equal bytes.

    Args:
        verdict: Sizes, verification and budgets.
        interface: What callers of the model see; first in every rendering.
        groups: Coupled groups whose size changed.
        nodes: Operations that were added, removed or changed.
        parameters: Stored tensors that were added, removed or changed.
        layers: Parameter counts per module, changed or not.
        pinned: Units that could not be removed.
        notes: Sentences the reader needs.
        variants: Files that were made of the model, where several were.
        title: Names the pair, such as "model.onnx"; never a path.

    A rename or another order of equal nodes is no change: it leaves every
    tuple of changes empty.
    """

    verdict: Verdict = field(default_factory=Verdict)
    interface: tuple[InterfaceChange, ...] = ()
    groups: tuple[GroupChange, ...] = ()
    nodes: tuple[NodeChange, ...] = ()
    parameters: tuple[ParameterChange, ...] = ()
    layers: tuple[Layer, ...] = ()
    pinned: tuple[Pinned, ...] = ()
    notes: tuple[Note, ...] = ()
    variants: tuple[Variant, ...] = ()
    title: str = ""

    @property
    def same(self) -> bool:
        """Nothing changed that a reviewer must look at."""
        return not (self.interface or self.groups or self.nodes or self.parameters)

    @property
    def breaking(self) -> bool:
        """An existing caller may fail with the model after the change."""
        return any(change.breaking for change in self.interface)

    def with_budgets(self, limits: Iterable[str]) -> GraphDiff:
        """The same diff, checked against limits such as "params=-30%".

        Raises:
            BudgetError: If a limit cannot be parsed.
        """
        from fgcompile.report.budget import check_budgets

        results = check_budgets(self.verdict, limits)
        return replace(self, verdict=replace(self.verdict, budgets=results))

    def with_verification(self, verified: Verification) -> GraphDiff:
        """The same diff, with what running both models side by side showed."""
        return replace(self, verdict=replace(self.verdict, verified=verified))

    def to_json(self) -> str:
        """JSON that follows `docs/schema/graph-diff-1.json`; kept indices in full."""
        from fgcompile.report.render_json import render_json

        return render_json(self)

    def to_markdown(self, max_chars: int = 65_536) -> str:
        """Markdown for a pull request, at most `max_chars` characters."""
        from fgcompile.report.render_markdown import render_markdown

        return render_markdown(self, max_chars)

    def to_html(self) -> str:
        """One self-contained page: no network, light and dark."""
        from fgcompile.report.render_html import render_html

        return render_html(self)

    def to_svg(self) -> str:
        """A picture of the layers for a README: what stays, what goes."""
        from fgcompile.report.render_svg import render_svg

        return render_svg(self)

    def to_terminal(self, width: int = 100, color: bool = False) -> str:
        """Text for a terminal of `width` columns."""
        from fgcompile.report.render_terminal import render_terminal

        return render_terminal(self, width, color)

    def __str__(self) -> str:
        return self.to_terminal().rstrip("\n")
