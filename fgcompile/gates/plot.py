"""How open the gates were during training, drawn beside the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgcompile.errors import GateError

LINES = {
    "gates/open": "open units",
    "gates/params": "parameters in open units",
    "gates/macs": "MACs in open units",
}


def plot_gates(
    history: Sequence[Mapping[str, Any]], path: str | Path | None = None
) -> Any:
    """Draws open fraction and loss over steps.

    Args:
        history: One mapping a step, with `loss`, `step` and what `gate_numbers` gives,
            such as `trainer.state.log_history` with `gate_callback`. Entries may lack
            any of them; without `step`, their position counts.
        path: Where to write the figure too, as PNG, SVG or PDF.

    Returns:
        The `matplotlib.figure.Figure`: fractions above, the loss below.

    Raises:
        GateError: If no entry has numbers of gates.
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    steps = [entry.get("step", number) for number, entry in enumerate(history, 1)]
    if not any(name in entry for entry in history for name in LINES):
        raise GateError(
            f"none of {len(history)} entries has numbers of gates\n"
            "  Log fgcompile.gates.gate_numbers(model), or give the Trainer "
            "gate_callback()."
        )
    figure = Figure(figsize=(6, 5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for name, label in LINES.items():
        _line(upper, steps, history, name, label)
    upper.set(ylabel="fraction", ylim=(0, 1.05))
    upper.legend()
    _line(lower, steps, history, "loss", "loss")
    lower.set(xlabel="step", ylabel="loss")
    if path is not None:
        figure.savefig(path)
    return figure


def _line(axes: Any, steps: list[Any], history: Any, name: str, label: str) -> None:
    points = [
        (step, entry[name])
        for step, entry in zip(steps, history, strict=True)
        if name in entry
    ]
    if points:
        axes.plot(*zip(*points, strict=True), label=label)
