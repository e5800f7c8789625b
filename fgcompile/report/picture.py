"""The picture of a model: one bar per module, of what stays, goes and comes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fgcompile.report.changes import Layer, Measure
from fgcompile.report.graph_diff import GraphDiff
from fgcompile.report.wording import percent, short

_LAYER = re.compile(r"^(.*?(?:^|\.)\d+)(?:\.|$)")


@dataclass(frozen=True)
class Bar:
    """A module's bar; widths are percents of the longest bar that changed.

    An unchanged bar that is longer still, such as a vocabulary, is cut off at 100:
    it would leave no room to see the change.

    Args:
        name: Module path.
        stays: Width of the parameters that are there before and after.
        goes: Width of those that are gone.
        comes: Width of those that are new.
        text: The numbers, in words.
        groups: Coupled groups that the module takes part in.
        cut: The bar is longer than it is drawn.
    """

    name: str
    stays: float
    goes: float
    comes: float
    text: str
    groups: tuple[str, ...] = ()
    cut: bool = False

    @property
    def changed(self) -> bool:
        return bool(self.goes or self.comes)


def module_bars(diff: GraphDiff) -> list[Bar]:
    """One bar per module that holds parameters."""
    return _bars(diff.layers)


def block_bars(diff: GraphDiff) -> list[Bar]:
    """One bar per repeated block or top-level module, for a small picture."""
    blocks: dict[str, list[Layer]] = {}
    for layer in diff.layers:
        match = _LAYER.match(layer.module)
        name = match[1] if match else layer.module.partition(".")[0]
        blocks.setdefault(name, []).append(layer)
    return _bars(
        [
            Layer(
                name,
                Measure(
                    sum(layer.parameters.before or 0 for layer in layers),
                    sum(layer.parameters.after or 0 for layer in layers),
                ),
            )
            for name, layers in blocks.items()
        ]
    )


def _bars(layers: Sequence[Layer]) -> list[Bar]:
    sizes = [(y.parameters.before or 0, y.parameters.after or 0) for y in layers]
    longest = max((max(size) for size in sizes if size[0] != size[1]), default=0)
    longest = longest or max((max(size) for size in sizes), default=0) or 1
    return [
        Bar(
            name=layer.module or "(root)",
            stays=min(_width(min(before, after), longest), 100),
            goes=_width(max(before - after, 0), longest),
            comes=_width(max(after - before, 0), longest),
            text=_text(layer.parameters),
            groups=layer.groups,
            cut=min(before, after) > longest,
        )
        for layer, (before, after) in zip(layers, sizes, strict=True)
    ]


def _width(count: int, longest: int) -> float:
    return round(100 * count / longest, 2)


def _text(measure: Measure) -> str:
    if measure.delta == 0:
        return short(measure.after)
    change = percent(measure)
    arrow = f"{short(measure.before)} -> {short(measure.after)}"
    return f"{arrow} ({change})" if change else arrow
