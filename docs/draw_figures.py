"""Draws the figures of how-it-works.md from the objects that its code makes.

`python docs/draw_figures.py` writes docs/figures/*.svg; the test suite compares them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fgcompile.analysis.coupling import find_groups
from fgcompile.analysis.facts import find_constants
from fgcompile.analysis.needs import propagate_needs
from fgcompile.analysis.survivors import close_survivors
from fgcompile.capture import capture
from fgcompile.passes.base import run_passes
from fgcompile.passes.propagate_constants import propagate_constants

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "how-it-works.md"
FOLDER = DOCS / "figures"

INK, GREY, PLAIN = "#22303c", "#6b7885", "#f3f5f7"
# Okabe and Ito's palette, lightened: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN = "#9ecae9", "#fbc77e", "#a5dab6"


class Cell(NamedTuple):
    """One box of a grid."""

    fill: str = PLAIN
    label: str = ""


class Drawing:
    """Shapes of one figure; sizes are in pixels."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """An empty figure; `title` is what a screen reader says."""
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []

    def text(self, x: float, y: float, text: str, size: int = 13, **style: str) -> None:
        """Writes `text` with its baseline at `y`."""
        given = {"fill": INK, **style}
        more = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in given.items())
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}"{more}>{escape(text)}</text>'
        )

    def heading(self, x: float, y: float, text: str) -> None:
        """Writes what a part of the figure shows."""
        self.text(x, y, text, font_weight="bold")

    def grid(
        self, x: float, y: float, rows: Sequence[Sequence[Cell]], size: int = 28
    ) -> None:
        """Draws rows of cells from the upper left corner `(x, y)`."""
        for i, row in enumerate(rows):
            for j, cell in enumerate(row):
                left, top = x + j * size, y + i * size
                self.shapes.append(
                    f'<rect x="{left:g}" y="{top:g}" width="{size}" height="{size}" '
                    f'fill="{cell.fill}" stroke="{INK}" stroke-width="0.7"/>'
                )
                if cell.label:
                    middle, low = left + size / 2, top + size / 2 + 4
                    self.text(middle, low, cell.label, 11, text_anchor="middle")

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draws an arrow with its tip at `(x2, y2)`."""
        self.shapes.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{INK}" '
            'stroke-width="1.2" marker-end="url(#tip)"/>'
        )

    def svg(self) -> str:
        """The whole file."""
        size = f'width="{self.width}" height="{self.height}"'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
            f'viewBox="0 0 {self.width} {self.height}" role="img" '
            'font-family="system-ui, DejaVu Sans, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n"
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>\n'
            f'<rect {size} fill="#ffffff"/>\n'
        )
        return head + "\n".join(self.shapes) + "\n</svg>\n"


def planes(names: dict[str, Any]) -> Drawing:
    """The numbers of the rows of `qk.weight`, before and after they are moved."""
    values = names["analysis"].flow.values
    rows = next(v for v in values if v.node.name == "linear").planes[0].reshape(-1)
    made = [v.planes[0].squeeze() for v in values if v.node.name == "unbind"]
    colour = {n: (BLUE, ORANGE)[h] for p in made for h in (0, 1) for n in p[h].tolist()}

    d = Drawing(640, 262, "Movement operators run on the numbers of the rows")
    d.heading(20, 28, "the rows of qk.weight, numbered")
    d.grid(20, 42, [[Cell(colour[n], str(n)) for n in rows.tolist()]])
    d.arrow(118, 78, 118, 128)
    d.text(132, 108, "view(…, 2, 2, 3), permute, unbind: the model's own operators", 12)
    for k, (plane, name) in enumerate(zip(made, ("queries", "keys"), strict=True)):
        x = 76 + 200 * k
        d.heading(x, 152, name)
        d.grid(x, 164, [[Cell(colour[n], str(n)) for n in row] for row in plane])
        for h in (0, 1):
            d.text(x - 8, 182 + 28 * h, f"head {h}", 11, text_anchor="end", fill=GREY)
    d.text(76, 246, "Row 6 is dim 0 of the keys of head 0. The operators said so.", 12)
    return d


def coupling(names: dict[str, Any]) -> Drawing:
    """What channel 2 and head 0 are made of."""
    d = Drawing(640, 470, "What goes with channel 2, and what goes with head 0")
    d.heading(20, 28, "channel 2 is one unit: it goes as a whole")
    parts = ("up.weight", "up.bias", "down.weight")
    _parameters(d, names, "mlp", 2, parts, BLUE, 42)
    d.heading(20, 244, "head 0 owns rows of two matrices and columns of a third")
    parts = ("qk.weight", "v.weight", "out.weight")
    _parameters(d, names, "head", 0, parts, ORANGE, 258)
    return d


def _parameters(
    d: Drawing,
    names: dict[str, Any],
    group: str,
    unit: int,
    parameters: Iterable[str],
    colour: str,
    y: float,
) -> None:
    """Draws parameters side by side; what belongs to the unit is coloured."""
    members = names["analysis"].by_name[group].members
    x, size = 20, 14 if group == "head" else 18
    for name in parameters:
        shape = list(names["model"].get_parameter(name).shape)
        rows, columns = (*shape, 1)[:2]
        mine = {
            (m.dim, k)
            for m in members
            if m.parameter == name
            for k, held in enumerate(m.index.tolist())
            if held == unit
        }
        d.grid(
            *(x, y),
            [
                [
                    Cell(colour if {(0, i), (1, j)} & mine else PLAIN)
                    for j in range(columns)
                ]
                for i in range(rows)
            ],
            size,
        )
        d.text(x, y + rows * size + 18, f"{name} {shape}", 12)
        x += 200


def liveness(names: dict[str, Any]) -> Drawing:
    """Constants of the hidden channels, and needs once they are folded."""
    folded = names["program"].copy()
    run_passes(folded, (propagate_constants,))
    flow = find_groups(folded).flow
    needs = propagate_needs(flow, find_constants(folded, flow))
    needed = dict(zip([v.node.name for v in flow.values], needs.planes, strict=True))

    d = Drawing(640, 318, "Constants forward, needs backward")
    d.heading(150, 28, "constants, forward")
    shown = (("linear_3", "up(x)"), ("sigmoid", "sigmoid(up(x))"))
    for row, (node, title) in enumerate(shown):
        known = names["known"][node][0].reshape(-1).tolist()
        cells = [
            Cell(PLAIN, "~") if np.isnan(c) else Cell(ORANGE, f"{c:g}") for c in known
        ]
        d.text(136, 61 + 76 * row, title, 12, text_anchor="end")
        d.grid(150, 42 + 76 * row, [cells])
    d.arrow(164, 74, 164, 114)
    d.text(390, 61, "~ varies with the input", 12, fill=GREY)
    d.arrow(220, 150, 220, 186)
    d.text(150, 206, "down.bias + 0.5 · down.weight[:, 2]: the constant moves on", 12)
    d.heading(150, 244, "needs, backward, after that")
    seen = needed["sigmoid"][0].reshape(-1).tolist()
    cells = [Cell(GREEN, "yes") if s else Cell("#ffffff", "no") for s in seen]
    d.text(136, 275, "sigmoid(up(x))", 12, text_anchor="end")
    d.grid(150, 256, [cells])
    d.text(390, 275, "channel 2 can go", 12, fill=GREY)
    return d


def _constant(value: float) -> Cell:
    return Cell(PLAIN, "~") if np.isnan(value) else Cell(ORANGE, f"{value:g}")


def rectangular(names: dict[str, Any]) -> Drawing:
    """Dead dims of the queries, of one head and of both."""
    both = names["model"]
    one = copy.deepcopy(both)
    with torch.no_grad():
        one.qk.weight[5], one.qk.bias[5] = 1.0, 1.0

    d = Drawing(640, 300, "Heads keep equal widths: which dead dims can go")
    for row, (model, title) in enumerate(
        (
            (one, "dim 0 of head 0 is dead: it is revived, as zeros"),
            (both, "a dim of each head is dead: both heads shrink"),
        )
    ):
        y = 28 + 140 * row
        d.heading(20, y, title)
        needed, kept = _queries(model, names["inputs"])
        for k, (mask, text) in enumerate(((needed, "needed"), (kept, "kept"))):
            x = 76 + 230 * k
            cells = [
                [_state(n, k, stays) for n, stays in zip(*rows, strict=True)]
                for rows in zip(needed.tolist(), mask.tolist(), strict=True)
            ]
            d.grid(x, y + 30, cells)
            d.text(x, y + 22, text, 12, fill=GREY)
            for h in (0, 1):
                d.text(x - 8, y + 48 + 28 * h, f"head {h}", 11, text_anchor="end")
        d.arrow(176, y + 58, 232, y + 58)
    return d


def _queries(model: Any, inputs: Any) -> tuple[Any, Any]:
    """Masks [head dim] of what is needed of the queries, and of what survives."""
    program = capture(model, inputs)
    flow = find_groups(program).flow
    needs = propagate_needs(flow, find_constants(program, flow))
    survivors = close_survivors(flow, needs)
    value = next(k for k, v in enumerate(flow.values) if v.node.name == "unbind")
    masks = needs.planes[value][0], survivors.planes[value][0]
    return masks[0].squeeze(), masks[1].squeeze()


def _state(needed: bool, column: int, stays: bool) -> Cell:
    if needed:
        return Cell(GREEN, "yes")
    if column:
        return Cell(ORANGE, "0") if stays else Cell("#ffffff")
    return Cell("#ffffff", "no")


def norm(names: dict[str, Any]) -> Drawing:
    """The mean of squares over units of which two are zero, and without them."""
    x = names["batch"]["x"][:1, :1]
    with torch.no_grad():
        wide = names["normed"].up(x).reshape(-1)
        up = names["lowered_norm"].model.up
        narrow = torch.nn.functional.linear(x, up.weight, up.bias).reshape(-1)
    d = Drawing(640, 214, "A norm over fewer units, repaired")
    for row, (values, title) in enumerate(
        ((wide, "six units, two of them zero"), (narrow, "the four that stay"))
    ):
        y = 28 + 92 * row
        mean = values.square().mean().item()
        d.heading(20, y, title)
        cells = [Cell(GREEN if v else ORANGE, f"{v:.2f}") for v in values.tolist()]
        d.grid(20, y + 12, [cells], 40)
        d.text(290, y + 36, f"mean of squares: {mean:.3f}", 12)
        if row:
            share = len(narrow) / len(wide)
            text = f"times {len(narrow)}/{len(wide)}: {mean * share:.3f}, as before"
            d.text(440, y + 36, text, 12)
    return d


FIGURES: dict[str, Callable[[dict[str, Any]], Drawing]] = {
    figure.__name__: figure
    for figure in (planes, coupling, liveness, rectangular, norm)
}


def main() -> None:
    """Runs the code of the page, and writes its figures."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        lines = block.splitlines()
        if lines[0].startswith(">>>"):
            lines = [line[4:] for line in lines if line.startswith((">>> ", "... "))]
        exec("\n".join(lines), names)
    FOLDER.mkdir(exist_ok=True)
    for name, figure in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(figure(names).svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
